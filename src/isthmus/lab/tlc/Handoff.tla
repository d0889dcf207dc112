------------------------------ MODULE Handoff ------------------------------
(***************************************************************************)
(* Pull under a lease, stated a second time and independently of the code: *)
(* one producer, one consumer, one tenant, one-sided copies of two chunks. *)
(* `isthmus verify tlc` counts its states with TLC and compares them with  *)
(* those that the production `step` functions reach in the scope "shared". *)
(*                                                                         *)
(* A message stays on the wire while it can matter: it may come never,     *)
(* late, or again and again, in any order. A lease may run out at any      *)
(* moment. Blocks are used again by whoever comes next.                    *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS R, S, D,       \* how many requests, source blocks, destination blocks
          OwnerChecks    \* FALSE takes the owner's check away: it confirms whatever has become of the blocks

Requests == 1..R
Nobody == 0
Chunks == 1..2

VARIABLES h,             \* each request's hand-off, on both sides and on the wire
          stamp          \* who wrote each chunk of each source block

Idle == [dst |-> "idle", src |-> "none", filled |-> 0, late |-> FALSE, copied |-> <<>>, good |-> FALSE,
         net |-> {}, block |-> Nobody, dblock |-> Nobody]
Done == [Idle EXCEPT !.dst = "done"]

Ended == {"succeeded", "failed", "expired"}
OwnsSource(x) == x.src \in {"computing", "draining", "held", "published"}
OwnsDestination(x) == x.dst \notin {"idle", "over", "done"}
(* Who may still touch the source block at x.block, whether or not x owns it. *)
HasAddress(x) == \/ x.src \in {"computing", "draining"}
                 \/ x.dst \in {"reading", "ab_reading"}
                 \/ x.dst = "reserved" /\ "offer" \in x.net

(***************************************************************************)
(* What nobody can see any more is forgotten, so that states that differ   *)
(* in nothing else are one.                                                *)
(***************************************************************************)
NothingAfterTheEnd(x) ==
  IF x.dst = "over" THEN [x EXCEPT !.net = @ \ {"offer", "yes", "no"}, !.copied = <<>>, !.good = FALSE, !.dblock = Nobody]
  ELSE x
NoLeaseAfterTheEnd(x) == IF x.src \in Ended THEN [x EXCEPT !.late = FALSE, !.filled = 0] ELSE x
BothOver(x) == IF x.dst = "over" /\ x.src \in Ended THEN Done ELSE x
NoAddress(x) == IF ~OwnsSource(x) /\ ~HasAddress(x) THEN [x EXCEPT !.block = Nobody] ELSE x
Forget(x) == NoAddress(BothOver(NoLeaseAfterTheEnd(NothingAfterTheEnd(x))))

Touched(hs, s) == \E q \in Requests : hs[q].block = s /\ (OwnsSource(hs[q]) \/ HasAddress(hs[q]))

(* Request r becomes x, and memory becomes m. *)
Become(r, x, m) ==
  /\ h' = [h EXCEPT ![r] = Forget(x)]
  /\ stamp' = [s \in 1..S |-> IF Touched(h', s) THEN m[s] ELSE <<Nobody, Nobody>>]

FreeSource(s) == ~ \E q \in Requests : OwnsSource(h[q]) /\ h[q].block = s
FreeDestination(d) == ~ \E q \in Requests : OwnsDestination(h[q]) /\ h[q].dblock = d

Init == /\ h = [r \in Requests |-> Idle]
        /\ stamp = [s \in 1..S |-> <<Nobody, Nobody>>]

(***************************************************************************)
(* The consumer.                                                           *)
(***************************************************************************)
Begin(r) == \E d \in 1..D :
  /\ h[r].dst = "idle" /\ FreeDestination(d)
  /\ Become(r, [h[r] EXCEPT !.dst = "reserved", !.dblock = d], stamp)

TakeOffer(r) ==
  /\ h[r].dst = "reserved" /\ "offer" \in h[r].net
  /\ Become(r, [h[r] EXCEPT !.dst = "reading"], stamp)

Copy(r) ==
  /\ h[r].dst \in {"reading", "ab_reading"}
  /\ LET seen == IF stamp[h[r].block][Len(h[r].copied) + 1] = r THEN "mine" ELSE "other"
         copied == Append(h[r].copied, seen)
         next == IF Len(copied) < 2 THEN h[r].dst ELSE IF h[r].dst = "reading" THEN "converting" ELSE "over"
     IN Become(r, [h[r] EXCEPT !.copied = copied, !.dst = next], stamp)

Convert(r) ==
  \/ /\ h[r].dst = "converting"
     /\ Become(r, [h[r] EXCEPT !.dst = "verifying", !.good = (h[r].copied = <<"mine", "mine">>), !.copied = <<>>], stamp)
  \/ /\ h[r].dst = "ab_converting"
     /\ Become(r, [h[r] EXCEPT !.dst = "over"], stamp)

Verify(r) ==
  \/ /\ h[r].dst = "verifying"
     /\ Become(r, [h[r] EXCEPT !.dst = "verified", !.net = @ \cup {"confirm"}], stamp)
  \/ /\ h[r].dst = "ab_verifying"
     /\ Become(r, [h[r] EXCEPT !.dst = "over"], stamp)

Yes(r) == /\ h[r].dst = "verified" /\ "yes" \in h[r].net
          /\ Become(r, [h[r] EXCEPT !.dst = "installed"], stamp)
No(r) == /\ h[r].dst = "verified" /\ "no" \in h[r].net
         /\ Become(r, [h[r] EXCEPT !.dst = "over"], stamp)
Finish(r) == /\ h[r].dst = "installed"
             /\ Become(r, [h[r] EXCEPT !.dst = "over"], stamp)

GivenUp == [reserved |-> "over", reading |-> "ab_reading", converting |-> "ab_converting",
            verifying |-> "ab_verifying", verified |-> "over"]
GiveUp(r) == /\ h[r].dst \in DOMAIN GivenUp
             /\ Become(r, [h[r] EXCEPT !.dst = GivenUp[h[r].dst]], stamp)
Stopped(r) == /\ h[r].dst \in {"ab_reading", "ab_converting", "ab_verifying"}
              /\ Become(r, [h[r] EXCEPT !.dst = "over"], stamp)

(***************************************************************************)
(* The producer.                                                           *)
(***************************************************************************)
Order(r) == \E s \in 1..S :
  /\ h[r].dst \notin {"idle", "done"} /\ h[r].src = "none" /\ FreeSource(s)
  /\ Become(r, [h[r] EXCEPT !.src = "computing", !.filled = 0, !.block = s], stamp)

Fill(r) ==
  /\ h[r].src \in {"computing", "draining"}
  /\ LET written == [stamp EXCEPT ![h[r].block][h[r].filled + 1] = r]
         x == IF h[r].filled = 0 THEN [h[r] EXCEPT !.filled = 1]
              ELSE IF h[r].src = "computing" THEN [h[r] EXCEPT !.filled = 0, !.src = "held"]
              ELSE Done
     IN Become(r, x, written)

EngineStops(r) == /\ h[r].src = "draining"
                  /\ Become(r, Done, stamp)

Publish(r) == /\ h[r].src = "held"
              /\ Become(r, [h[r] EXCEPT !.src = "published", !.net = @ \cup {"offer"}], stamp)
LeaseOver(r) == /\ h[r].src = "published" /\ ~h[r].late
                /\ Become(r, [h[r] EXCEPT !.late = TRUE], stamp)
Reap(r) == /\ h[r].src = "published" /\ h[r].late
           /\ Become(r, [h[r] EXCEPT !.src = "expired"], stamp)

Confirm(r) ==
  /\ "confirm" \in h[r].net
  /\ LET refusal == IF OwnerChecks THEN "no" ELSE "yes"
         answer(src, word) == [h[r] EXCEPT !.src = src, !.net = @ \cup {word}]
     IN CASE h[r].src = "published" /\ ~h[r].late -> Become(r, answer("succeeded", "yes"), stamp)
          [] h[r].src = "published" /\ h[r].late -> Become(r, answer("failed", refusal), stamp)
          [] h[r].src = "succeeded" -> Become(r, answer("succeeded", "yes"), stamp)
          [] h[r].src \in {"failed", "expired"} -> Become(r, answer(h[r].src, refusal), stamp)
          [] OTHER -> FALSE

Abandon(r) ==
  /\ h[r].dst = "over"
  /\ \/ h[r].src \in {"none", "held", "published"} /\ Become(r, Done, stamp)
     \/ h[r].src = "computing" /\ Become(r, [h[r] EXCEPT !.src = "draining"], stamp)

Next == \E r \in Requests :
  \/ Begin(r) \/ TakeOffer(r) \/ Copy(r) \/ Convert(r) \/ Verify(r) \/ Yes(r) \/ No(r) \/ Finish(r) \/ GiveUp(r) \/ Stopped(r)
  \/ Order(r) \/ Fill(r) \/ EngineStops(r) \/ Publish(r) \/ LeaseOver(r) \/ Reap(r) \/ Confirm(r) \/ Abandon(r)

Spec == Init /\ [][Next]_<<h, stamp>>

(***************************************************************************)
(* I1: what is installed is wholly the request's own. A block has one      *)
(* owner. I9: decode only follows an owner's yes.                          *)
(***************************************************************************)
NoStaleOrTornInstall == \A r \in Requests : h[r].dst = "installed" => h[r].good
OneOwner == \A r, q \in Requests : r # q =>
  /\ ~(OwnsSource(h[r]) /\ OwnsSource(h[q]) /\ h[r].block = h[q].block)
  /\ ~(OwnsDestination(h[r]) /\ OwnsDestination(h[q]) /\ h[r].dblock = h[q].dblock)
CommitFirst == \A r \in Requests : h[r].dst = "installed" => h[r].src = "succeeded"
=============================================================================
