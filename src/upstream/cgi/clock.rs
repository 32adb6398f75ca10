//! The time limits of one request, kept with one timer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

/// One timer for all limits of a request. It is set anew only when it goes off too early or would go off too late.
#[derive(Default)]
pub(super) struct Clock {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Ready at that time, or soon after a time that it was set to before.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, until: Option<Instant>) -> Poll<()> {
        let Some(until) = until else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if until < sleep.deadline() || sleep.is_elapsed() {
            sleep.as_mut().reset(until);
        }
        ready!(sleep.as_mut().poll(cx));
        match Instant::now() >= until {
            true => Poll::Ready(()),
            false => {
                sleep.as_mut().reset(until);
                sleep.as_mut().poll(cx)
            }
        }
    }
}
