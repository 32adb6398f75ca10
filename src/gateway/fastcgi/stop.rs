//! Whether the server stops, for a connection that asks each time it has nothing else to do.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The token by which a connection is told to stop.
///
/// To ask a token takes a lock that all connections share. So the token wakes a bell, and the connection asks that: one load.
pub(super) struct Stop {
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    bell: Option<Arc<Bell>>,
}

/// Is woken by the token, and wakes the connection.
struct Bell {
    rung: AtomicBool,
    connection: Waker,
}

impl Stop {
    pub(super) fn new(token: CancellationToken) -> Self {
        Self { stopped: Box::pin(token.cancelled_owned()), bell: None }
    }

    /// Whether the server stops; if it does not, the connection is woken once it does.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> bool {
        match &self.bell {
            Some(bell) if !bell.rung.load(Ordering::Acquire) && bell.connection.will_wake(cx.waker()) => false,
            // The first time, after it rang, and for another waker.
            _ => {
                let bell = Arc::new(Bell { rung: AtomicBool::new(false), connection: cx.waker().clone() });
                let waker = Waker::from(bell.clone());
                self.bell = Some(bell);
                self.stopped.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
            }
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.connection.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn whoever_asked_is_woken_when_the_token_is_cancelled() {
        let token = CancellationToken::new();
        let mut stop = Stop::new(token.clone());
        let early = std::future::poll_fn(|cx| Poll::Ready([stop.poll(cx), stop.poll(cx)])).await;
        assert_eq!(early, [false, false]);
        // Another task goes on with it.
        let waiting = tokio::spawn(std::future::poll_fn(move |cx| match stop.poll(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }));
        tokio::task::yield_now().await;
        token.cancel();
        waiting.await.unwrap();
    }
}
