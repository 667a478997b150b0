//! A call that may be made twice because its first token is late.
//!
//! | running | on | then |
//! |---|---|---|
//! | the first | its first token is late, and a second may be made | both |
//! | both | one of them writes or answers | that one; the other is cancelled and accounted for |
//! | both | one of them fails | the other |
//! | one | it ends | the end |
//!
//! Nothing is passed on before one of the two has won, and then only what that one writes.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use mainspring_session::{HedgeNote, Usage};
use mainspring_wire::{Delta, HttpFailure};

use crate::admission::{Ended, Permit};
use crate::client::{Failed, Listener, ModelClient, ModelReply, ModelRequest, settle};

/// Bytes of a request for each of its tokens, where the server did not count them.
const BYTES_PER_TOKEN: u64 = 4;

/// One of the two calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

/// Lets through what the winner writes.
struct Gate<'a> {
    winner: Cell<Option<Side>>,
    on_delta: RefCell<&'a mut dyn FnMut(Delta<'_>)>,
}

impl Gate<'_> {
    /// True for the first to ask, and for nobody else.
    fn claim(&self, side: Side) -> bool {
        if self.winner.get().is_none() {
            self.winner.set(Some(side));
        }
        self.winner.get() == Some(side)
    }

    fn pass(&self, side: Side, delta: Delta<'_>) {
        if self.claim(side) {
            (self.on_delta.borrow_mut())(delta);
        }
    }
}

type Result2 = Result<ModelReply, Failed>;
type Running<'a> = Pin<Box<dyn Future<Output = Result2> + 'a>>;

/// Makes the call, and a second one if nothing has come after `late`.
pub(crate) async fn run(
    client: &ModelClient,
    request: &ModelRequest,
    (permit, late): (Permit, Duration),
    on_delta: &mut dyn FnMut(Delta<'_>),
) -> Result<ModelReply, HttpFailure> {
    let gate = Gate { winner: Cell::new(None), on_delta: RefCell::new(on_delta) };
    let mut first = start(client, request, &permit, (&gate, Side::First));
    let mut wait = late;
    let (second_permit, loan) = loop {
        if let Some(result) = before(&mut first, &gate, wait).await {
            drop(first);
            return settle(permit, result);
        }
        // A second call that nobody can pay for is not made.
        let loan = request.second.as_ref().map(|second| second.reserve()).transpose();
        if let Ok(loan) = loan
            && let Some(second) = client.admission().hedge(request, &permit)
        {
            break (second, loan);
        }
        // Nobody is free, or enough has been made twice: that may be different later.
        wait *= 2;
    };
    let second = start(client, request, &second_permit, (&gate, Side::Second));
    let (side, result, other_failed) = race((first, second), &gate).await;
    let endpoint = u32::try_from(second_permit.endpoint_idx()).unwrap_or(0);
    let (permit, other) = match side {
        Side::First => (permit, second_permit),
        Side::Second => (second_permit, permit),
    };
    match other_failed {
        Some(failed) => drop(settle(other, Err(failed))),
        None if side == Side::Second => other.end(&Ended::Beaten),
        // It had hardly begun, so nothing can be said of it.
        None => drop(other),
    }
    let mut reply = match settle(permit, result) {
        Ok(reply) => reply,
        Err(failed) => {
            if let Some(loan) = loan {
                loan.spend_call();
            }
            return Err(failed);
        }
    };
    reply.notes.hedge = Some(HedgeNote {
        endpoint,
        won: side == Side::Second,
        cost_usd_estimate: cost_of_other(request, reply.usage),
    });
    Ok(reply)
}

fn start<'a>(
    client: &'a ModelClient,
    request: &'a ModelRequest,
    permit: &'a Permit,
    (gate, side): (&'a Gate<'_>, Side),
) -> Running<'a> {
    Box::pin(async move {
        let mut on_delta = |delta: Delta<'_>| gate.pass(side, delta);
        let on_first = || {
            gate.claim(side);
        };
        let listener = Listener { on_delta: &mut on_delta, on_first: Some(&on_first) };
        client.attempt(request, permit, listener).await
    })
}

/// The end of a call that ends, or is seen to write, before its first token is late; none if it is
/// late.
async fn before(call: &mut Running<'_>, gate: &Gate<'_>, late: Duration) -> Option<Result2> {
    let mut timer = pin!(tokio::time::sleep(late));
    poll_fn(|ctx| {
        if let Poll::Ready(result) = call.as_mut().poll(ctx) {
            return Poll::Ready(Some(result));
        }
        // Once it writes, it is waited for to its end.
        if gate.winner.get().is_some() {
            return Poll::Pending;
        }
        timer.as_mut().poll(ctx).map(|()| None)
    })
    .await
}

/// Runs both until one has won and ended, or both have failed; with how the other failed.
async fn race(
    (first, second): (Running<'_>, Running<'_>),
    gate: &Gate<'_>,
) -> (Side, Result2, Option<Failed>) {
    let (mut first, mut second) = (Some(first), Some(second));
    let mut failed: Option<Failed> = None;
    poll_fn(|ctx| {
        for side in [Side::First, Side::Second] {
            let (own, other) = match side {
                Side::First => (&mut first, &mut second),
                Side::Second => (&mut second, &mut first),
            };
            let Some(call) = own else { continue };
            let polled = call.as_mut().poll(ctx);
            if gate.winner.get() == Some(side) {
                *other = None;
            }
            let Poll::Ready(result) = polled else { continue };
            *own = None;
            match result {
                Err(error) if other.is_some() => failed = Some(error),
                result => {
                    *other = None;
                    return Poll::Ready((side, result, failed.take()));
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// What the call that was cancelled is taken to have cost: its input was read, and what it may have
/// written was cut short.
fn cost_of_other(request: &ModelRequest, usage: Usage) -> Option<f64> {
    let guessed = request.body.len() as u64 / BYTES_PER_TOKEN;
    let input_tokens = if usage.input_tokens > 0 { usage.input_tokens } else { guessed };
    let price = request.endpoints.policy.price?;
    Some(price.of(Usage { input_tokens, ..Usage::default() }))
}
