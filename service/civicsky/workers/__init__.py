"""Label workers on other machines: the home node asks the model through them, over NATS JetStream.

The home node (`civicsky run`, or `label`) stays what it is: the only writer of ledger, budgets, cache and store. What
it would have sent to a model's server it puts as a job into a work queue; a worker takes it, sends it to its own
model's server, and gives back what came: status, headers, text. All that is made of an answer is made at home, by the
same code as without workers: ways of asking, limits, retries, budget, what counts against a post, commit. A worker
knows neither ledger nor store, keeps nothing, and may be killed at any time.

    home: label.Slot -> endpoint.Line -> dispatch.Dispatcher ~~ NATS ~~ serve.Worker -> endpoint.Line -> its model

Who says what to whom, with `NAME` = `workers.name`, `M` = a hash of the model's name (and weights), `S` = the session,
new with each start of the home node; `v` is the version of the messages, the first thing in each of them:

| what | subject | from, to | answered with |
|---|---|---|---|
| job | `NAME.job.v.M` (stream `NAME`, work queue, in memory) | home to one worker | ack, in-progress, nak |
| claim | `NAME.home.S.claim` | worker to home, before each call | `go`, `drop`, or `leave`: others have it |
| result | `NAME.home.S.result` | worker to home, after it | `ok`: only then the job is acked |
| queue | `NAME.queue` | home to all workers: it was made anew | nothing |
| beat | `NAME.beat` | worker to home, every few seconds and at its end | why it gets nothing, while it gets nothing |

What always holds:

1. The ledger is the truth. The stream holds nothing that is not in the ledger as a job still to be done, so it may be
   lost, wiped or restarted at any time. It is in memory for that reason, and since it holds what authors wrote: no text
   reaches a disk of NATS.
2. A job has an id and an attempt, `Nats-Msg-Id` is both. One that is lost (stream gone or made anew, message gone
   without a result) is dispatched again under the next attempt, at once when that is seen. Whichever attempt's result
   comes first is taken; what comes later is answered with `ok` and dropped.
3. No call without a claim that was granted. The home grants it if the job still waits for a result and, by the ledger,
   one of its posts is still wanted as it was: a post that was deleted or updated meanwhile is not sent to a model. What
   comes too late for that is dropped by the ledger, as without workers. So calls <= posts + claims whose worker, or
   whose result, was lost: what was in flight at each fault, and ack waits that ran out.
4. A worker acks a job when the home has its result in hand, says in-progress while it calls, and gives back (nak) what
   it took and did not claim. A worker that is killed or cut off says nothing: after `workers.ack_seconds` another one
   gets the job. After `workers.deliveries` deliveries none gets it again; it counts as a call that broke.
5. `workers.in_hand` (the consumer's `max_ack_pending`) bounds what all workers hold together; a worker takes no more
   than it has free slots (its `label.slots`); the home dispatches no more than its own `label.slots`.
6. Limits a minute and a day, and budgets, are those of the home's settings, for all workers together.
7. Messages of a version that a worker does not know go to a subject that it does not read; one that is on the wrong
   subject all the same is given back, for others. So homes and workers are upgraded in any order. A beat is read by a
   home of any version, and the reply is plain words, so that both sides say who is too old, or has another model.
8. Secrets (password, token, credentials file, the model's key) are in no message, address, process list or log. A
   worker sends nothing but what `messages.PATHS` lists, to its own server: a job can name no address.

Modules: `messages` (pure: what is said), `roster` (pure: who is there), `wanted` (whether a call is still wanted),
`bus` and `workqueue` (the homes of nats-py: the connection, and the stream in it), `dispatch` (the home node's side),
`serve` (the worker), `told` (what `civicsky status` reads). Without `workers.url` only `wanted` and `told` are
imported, which are some dozen lines.
"""
