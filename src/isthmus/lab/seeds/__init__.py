"""The seeded simulation: the real hand-off and ownership code, in worlds where everything that may fail does.

    loop, clocks       virtual time; processes that die or stop at any await; clocks that run unlike
    paper, forms       a model on paper: real KV bytes, from which every answer follows
    engine, reads      that model as an engine with a pool; ways to copy out of it
    network, worker    the control messages, lossy; a worker's process, made of the real owners and sides
    gateway            who lives, who is fenced, and every request answered
    mix, faults        what a seed draws: a world, and what goes wrong in it
    watch              what must always hold, checked from outside (I1 to I10)
    world, campaign    one seed; many, with their sums
    canaries           the same with one check taken out: these must be caught

Refuses to know sockets, threads and real time. One seed is one history: equal in every process that runs it.
"""
