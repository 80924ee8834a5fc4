"""What a config costs on machines that one does not have: memory, arithmetic, traffic and a bound on the time.

topology, chips      v5p:2x2x2 -> devices and their data sheet
teachers, programs   config -> the jitted steps of an iteration and their abstract arguments
flops                arithmetic of a jaxpr, by network
hlo, collectives, traffic    a compiled program's text -> bytes over the interconnect and to the memory
estimate, report     all of it together, and as tables
"""
