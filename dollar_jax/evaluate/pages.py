"""HTML pages from the templates in this folder."""

import jinja2


def render(template: str, **values) -> str:
    """Fills in a template of this folder. Values are escaped; a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dollar_jax", "evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
