//! `start_response` and the `write` that it gives back, from the application's side; and the place where the driver picks up
//! what both leave.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::error::Error;
use super::head::{Head, HeadError, Headers, Status};

/// PEP 3333's `start_response`: names the status and the headers of the response.
///
/// Nothing is sent by calling it: the head goes out with the first non-empty piece of the body, a flush, or the end.
#[derive(Clone)]
pub struct StartResponse {
    announcement: Arc<Announcement>,
    hooks: Option<Arc<Hook>>,
}

/// What middleware does with the head, and what the middleware around it does then.
struct Hook {
    change: Box<dyn Fn(&mut Head) -> Result<(), Error> + Send + Sync>,
    outer: Option<Arc<Hook>>,
}

impl StartResponse {
    /// Sets the status and the headers: `start_response.start("200 OK", [("Content-Type", "text/plain")])?`.
    ///
    /// # Errors
    ///
    /// [`StartError::Head`] for what can't be sent, and [`StartError::Again`] for a second call: only
    /// [`restart`](StartResponse::restart) may replace a head.
    pub fn start<S>(&self, status: S, headers: impl Into<Headers>) -> Result<Write, Error>
    where
        S: TryInto<Status, Error: Into<HeadError>>,
    {
        let head = self.finish_head(status, headers.into())?;
        let mut state = self.announcement.state();
        if state.head.is_some() || state.head_sent {
            return Err(StartError::Again.into());
        }
        state.head = Some(head);
        drop(state);
        Ok(Write { announcement: self.announcement.clone() })
    }

    /// The call with `exc_info`: an error replaces the head that was set, as long as it has not been sent.
    ///
    /// # Errors
    ///
    /// `exc_info` itself once the head has been sent: it is to be returned from the application, which cuts the response.
    /// And [`StartError::Head`] for what can't be sent.
    pub fn restart<S>(&self, status: S, headers: impl Into<Headers>, exc_info: Error) -> Result<Write, Error>
    where
        S: TryInto<Status, Error: Into<HeadError>>,
    {
        let head = self.finish_head(status, headers.into())?;
        let mut state = self.announcement.state();
        if state.head_sent {
            return Err(exc_info);
        }
        state.head = Some(head);
        // What was written for the head that is replaced was not sent either.
        state.written = None;
        drop(state);
        Ok(Write { announcement: self.announcement.clone() })
    }

    /// The same, with `change` applied to every head before the middleware further out sees it. What it refuses is the
    /// error of the call.
    #[must_use]
    pub fn wrap(self, change: impl Fn(&mut Head) -> Result<(), Error> + Send + Sync + 'static) -> Self {
        Self {
            announcement: self.announcement,
            hooks: Some(Arc::new(Hook { change: Box::new(change), outer: self.hooks })),
        }
    }

    /// Whether the head has been sent, so that it can't be replaced any more.
    pub fn head_sent(&self) -> bool {
        self.announcement.state().head_sent
    }

    fn finish_head<S>(&self, status: S, headers: Headers) -> Result<Head, Error>
    where
        S: TryInto<Status, Error: Into<HeadError>>,
    {
        let status = status.try_into().map_err(|error| StartError::Head(error.into()))?;
        let mut head = Head { status, headers };
        let mut hook = self.hooks.as_ref();
        while let Some(next) = hook {
            (next.change)(&mut head)?;
            hook = next.outer.as_ref();
        }
        head.check().map_err(StartError::Head)?;
        Ok(head)
    }
}

impl fmt::Debug for StartResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartResponse").field("head_sent", &self.head_sent()).finish_non_exhaustive()
    }
}

/// What can go wrong with a call of `start_response`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A status or header that can't be sent.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Called a second time without an error.
    #[error("start_response was called twice; only a call with an error may replace the head")]
    Again,
    /// The body began, or ended, before it was called.
    #[error("the application gave its body without calling start_response first")]
    Never,
}

/// PEP 3333's `write` callable, for code that pushes its body instead of returning it.
///
/// What is written goes out before what the application returns, in order.
#[derive(Clone)]
pub struct Write {
    announcement: Arc<Announcement>,
}

/// The response was ended or given up by the server: nobody will take what is written.
#[derive(Debug, thiserror::Error)]
#[error("the response is over: the client left or the server gave it up")]
pub struct WriteError;

impl Write {
    /// Hands over a piece of the body, and waits until the server has room for it. Empty pieces are nothing.
    ///
    /// # Errors
    ///
    /// When the response is over. Cancel-safe: a cancelled call has handed over nothing.
    pub async fn write(&mut self, data: impl Into<Bytes>) -> Result<(), WriteError> {
        let mut data = Some(data.into()).filter(|data| !data.is_empty());
        poll_fn(|cx| {
            if data.is_none() {
                return Poll::Ready(Ok(()));
            }
            let mut state = self.announcement.state();
            if state.over {
                return Poll::Ready(Err(WriteError));
            }
            // One piece at a time: who writes waits until the driver, and so the client, has taken the one before.
            if state.written.is_some() {
                state.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.written = data.take();
            self.announcement.has_written.store(true, Ordering::Release);
            if let Some(driver) = state.driver.take() {
                driver.wake();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// The same for code that blocks. Only for threads that may block, such as those of [`blocking`](super::blocking()).
    ///
    /// # Errors
    ///
    /// When the response is over.
    pub fn write_blocking(&mut self, data: impl Into<Bytes>) -> Result<(), WriteError> {
        futures_executor::block_on(self.write(data))
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Write")
    }
}

/// What passes from one call's `start_response` and `write` to the driver of that call.
#[derive(Default)]
pub(super) struct Announcement {
    state: Mutex<State>,
    /// Spares the driver the lock on every piece of every body that never uses `write`.
    has_written: AtomicBool,
}

#[derive(Default)]
struct State {
    head: Option<Head>,
    head_sent: bool,
    written: Option<Bytes>,
    over: bool,
    writer: Option<Waker>,
    driver: Option<Waker>,
}

impl Announcement {
    pub(super) fn start_response(self: &Arc<Self>) -> StartResponse {
        StartResponse { announcement: self.clone(), hooks: None }
    }

    /// The head that is to be sent now; afterwards it can't be replaced.
    pub(super) fn send_head(&self) -> Result<Head, StartError> {
        let mut state = self.state();
        let head = state.head.take().ok_or(StartError::Never)?;
        state.head_sent = true;
        Ok(head)
    }

    pub(super) fn has_head(&self) -> bool {
        self.state().head.is_some()
    }

    pub(super) fn take_written(&self) -> Option<Bytes> {
        if !self.has_written.swap(false, Ordering::AcqRel) {
            return None;
        }
        let mut state = self.state();
        let written = state.written.take();
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        written
    }

    /// Has the driver woken by the next `write`, which may come from another task or thread.
    pub(super) fn wake_on_write(&self, cx: &mut Context<'_>) {
        let mut state = self.state();
        match &mut state.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            None => state.driver = Some(cx.waker().clone()),
        }
    }

    /// From now on `write` is refused.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.over = true;
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held, save for a broken waker: what it guards is whole either way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
