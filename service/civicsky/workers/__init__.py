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
| job | `NAME.job.v.M.S` (stream `NAME`, work queue, in memory) | home to one worker | ack, in-progress, nak |
| claim | `NAME.home.S.claim` | worker to home, before a call | `go`, `drop`, `leave`: others have it, `rest`: not you |
| result | `NAME.home.S.result` | worker to home, after it | `ok`, or `rest`: only then the job is acked |
| alive | `NAME.home.S.alive` | home to home | `alive` |
| queue | `NAME.queue` | home to all workers: it was made anew, or S is no more | nothing |
| beat | `NAME.beat` | worker to home, every few seconds and at its end | why it gets nothing, to one that asks |

What always holds:

1. The ledger is the truth. The stream holds nothing that is not in the ledger as a job still to be done, so it may be
   lost, wiped or restarted at any time. It is in memory for that reason, and since it holds what authors wrote: no text
   reaches a disk of NATS, and a home node that ends takes its jobs out.
2. A job has an id and an attempt, `Nats-Msg-Id` is both. One that is lost (stream gone or made anew, message gone
   without a result) is dispatched again under the next attempt, at once when that is seen. Whichever attempt's result
   comes first is taken; what comes later is answered with `ok` and dropped.
3. No call without a claim that was granted. The home grants it if the job still waits for a result and, by the ledger,
   one of its posts is still wanted as it was: a post that was deleted or updated meanwhile is not sent to a model. What
   comes too late for that is dropped by the ledger, as without workers. So calls <= posts + claims whose worker, or
   whose result, was lost: what was in flight at each fault, and ack waits that ran out. A worker that did not hear that
   it may takes its claim back (`void`), and no call is counted.
4. A worker acks a job when the home has its result in hand, says in-progress while it calls, and gives back (nak) what
   it took and did not claim. A worker that is killed or cut off says nothing: after `workers.ack_seconds` another one
   gets the job. After `workers.deliveries` deliveries none gets it again; it counts as a call that broke.
5. `workers.in_hand` (the consumer's `max_ack_pending`) bounds what all workers hold together; a worker takes no more
   than it has free slots (its `label.slots`); the home dispatches no more than its own `label.slots`.
6. Limits a minute and a day, and budgets, are those of the home's settings, for all workers together. They count when a
   claim is granted: what waited in the queue meanwhile is not sent in a lump, and what nobody took uses up nothing.
   What one worker's server cannot answer now another worker is given once, and that one is told to rest; else the
   home hears it.
7. Messages of a version that a worker does not know go to a subject that it does not read; one that is on the wrong
   subject all the same is given back, for others. So homes and workers are upgraded in any order.
8. A result counts only with the proof of a claim that was granted, which only that worker and the home node know. What
   else a worker says of itself is the far side's word: bounded, harmless, no reason and no name of ours.
9. Secrets (password, token, credentials file, the model's key) are in no message, address, process list or log. A
   worker sends nothing but what `messages.PATHS` lists, to its own server: a job can name no address.
10. Home nodes may share a stream, also with the same model. Who finds no stream makes one, and nobody deletes it; each
    has its jobs under a subject of its own. A session with jobs there that does not answer `alive` three times is no
    more, and who asked takes its jobs out. One that was only cut off sees that they are lost, and dispatches them
    again.

Modules: `messages` (pure: what is said), `roster` (pure: who is there), `wanted` (whether a call is still wanted),
`credentials` (files that let us into NATS), `bus` and `workqueue` (the homes of nats-py: the connection, and the stream
in it), `dispatch` (home; with `asked`: a question that waits, and `others`: home nodes that are no more), `serve` (the
worker; with `servers`: those of its model, and `rests`, pure: which of them rest), `listen` (who is there), `told`
(what `civicsky status` reads). Without `workers.url` only `wanted` and `told` are imported, which are some dozen lines.
"""
