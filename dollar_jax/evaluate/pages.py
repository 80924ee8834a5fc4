"""Pages of HTML from the templates that lie in this folder."""

import jinja2


def render(template: str, **values) -> str:
    """The template `template` of this folder, filled in. What it shows is escaped; a name it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dollar_jax", "evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
