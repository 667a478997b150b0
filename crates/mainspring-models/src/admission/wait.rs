//! A call that waits for its turn.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use mainspring_wire::HttpFailure;
use tokio::time::{Instant, Sleep};

use super::Admission;
use super::state::{Heard, Placed};

/// Resolves to the call's place. Dropped before that, it leaves the queue.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    admission: &'a Admission,
    number: u64,
    deadline: Option<Instant>,
    /// Set where the call keeps the time for its queue, or has a deadline of its own.
    timer: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(admission: &'a Admission, number: u64, deadline: Option<Instant>) -> Self {
        Self { admission, number, deadline, timer: None, is_over: false }
    }

    fn arm(&mut self, at: Instant, ctx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(ctx)
    }
}

impl Future for Waiting<'_> {
    type Output = Result<Placed, HttpFailure>;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let now = Instant::now();
            let heard = self.admission.lock().look(now, self.number, ctx.waker());
            let wake_at = match heard {
                Heard::Ended(result) => {
                    self.is_over = true;
                    return Poll::Ready(result);
                }
                Heard::Waits(wake_at) => wake_at,
            };
            let due = match (wake_at, self.deadline) {
                (Some(wake_at), Some(deadline)) => wake_at.min(deadline),
                (Some(at), None) | (None, Some(at)) => at,
                (None, None) => return Poll::Pending,
            };
            if self.arm(due, ctx).is_pending() {
                return Poll::Pending;
            }
            if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.is_over = true;
                return Poll::Ready(Err(self.admission.lock().expire(now, self.number)));
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.admission.lock().leave(Instant::now(), self.number);
        }
    }
}
