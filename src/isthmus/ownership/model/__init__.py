"""The model checker: production's `step` functions driven through every order of events within finite scopes.

    scopes      which worlds; `scope` what a world is made of     space       what follows from a state, once per view
    records     blocks, workers, requests, parts: values          symmetry    states that differ by names are one
    rules       production's own functions, memoised              relations   which blocks a request has to do with
    turn        one move; memory: bytes; tidying: its end         packing     a state is one integer
    orders      reserve; pull, push: the modes; endings           explore     level by level, and back for the story
    faults      deaths, pauses; adversary: forged messages        walk        where a scope is too large
    mutants     every guard taken out once; loader: how           campaign    all of it, and the report

A state of a scope is: for each request its record (`records.Request`), for each worker its head and its blocks
(`records.Slot`). A move is one `Option` of a request (`orders`, `pull` or `push`, `endings`, `adversary`) or of a
worker (`faults`); it happens at once and is tidied at its end (`tidying`), so that there are no states in between.

The scopes named `shared` are reduced in no way and simple enough to be stated a second time, elsewhere, and counted. In
them a request r is determined by

    dst     idle, reserved, reading, converting, verifying, verified, installed; aborting out of reading, converting or
            verifying; over; done
    src     none, computing, draining, held, published; succeeded, failed or expired, as long as dst is not over
    filled  chunks filled while computing or draining      late    its lease's time is over, while published
    copied  what each chunk read so far was: mine or not    good    whether what was converted is all mine
    net     which of offer, confirm, yes, no are on the wire, where they stay: each may come never or again and again
    block   the source block it owns or may still read      dblock  the destination block it owns

and each source block by who wrote its two chunks. A request whose sides have both ended is done, all else of it being
forgotten; so are the chunks of a block that is free and that nobody may read, and messages to a side that has ended.
Production's fields that are not named are functions of these. Its moves are those of `orders`, `pull` and `endings`
with no faults but giving up: begin, order, fill, publish, take the offer, copy, convert, verify, answer, yes, no,
finish, give up, stop, abandon, the lease runs out, the reaper.

Owns the checks of I1 to I10 within its scopes. Refuses to know asyncio, sockets, engines, and what the bytes mean.
"""
