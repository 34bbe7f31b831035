"""Who gets which message: the broker's decisions as pure functions of (state, message, now), one `Router` per lane.

============ =====================================================================================
module       decides
============ =====================================================================================
router       what each message leads to, and what falls due
delivery     who has a request and what it ends in: the one place where requests change state
registry     which worker serves what: registration, supersession, who is next, who is lost
requests     what an open request is, and how a reply looks
outcomes     what a finished request's id is answered with when it comes again
headers      what of a request's head the broker believes
accounts     what became of every message
topics       which publications a new subscriber gets
management   what the broker answers about itself
backlog      what is held for a peer that does not read as fast as it asks
bounds       how much of anything there may be
============ =====================================================================================
"""

from broker.routing.router import Router

__all__ = ["Router"]
