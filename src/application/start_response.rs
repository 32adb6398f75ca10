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

/// What middleware does with the head or with what happens to it, and what the middleware around it does then.
struct Hook {
    action: Action,
    outer: Option<Arc<Hook>>,
}

enum Action {
    Change(Box<Change>),
    Observe(Box<Observer>),
}

type Change = dyn Fn(&mut Head) -> Result<(), Error> + Send + Sync;
type Observer = dyn Fn(Event<'_>) -> Result<(), Error> + Send + Sync;

/// What an application does with its `start_response` and `write`, for middleware that watches it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A head was given that can be sent, as the application gave it.
    Head {
        /// The head.
        head: &'a Head,
        /// Whether it came with an error, to replace another head.
        exc_info: bool,
    },
    /// The call failed; the application has been told why.
    Refused {
        /// Why, save where it is the application's own `exc_info` that came back.
        error: &'a Error,
        /// Whether the call came with an error.
        exc_info: bool,
    },
    /// A call of `write` with data has returned.
    Write {
        /// How many bytes it was given.
        len: usize,
        /// Whether they were refused because the response is over.
        refused: bool,
    },
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
        let set = self.try_start(status, headers.into());
        self.announced(set, false)
    }

    fn try_start<S>(&self, status: S, headers: Headers) -> Result<(), Error>
    where
        S: TryInto<Status, Error: Into<HeadError>>,
    {
        // PEP 3333: a first call that failed counts as a call.
        if self.announcement.called.swap(true, Ordering::AcqRel) {
            return Err(StartError::Again.into());
        }
        let head = self.finish_head(status, headers, false)?;
        self.announcement.state().head = Some(head);
        Ok(())
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
        let set = self.try_restart(status, headers.into(), exc_info);
        self.announced(set, true)
    }

    fn try_restart<S>(&self, status: S, headers: Headers, exc_info: Error) -> Result<(), Error>
    where
        S: TryInto<Status, Error: Into<HeadError>>,
    {
        self.announcement.called.store(true, Ordering::Release);
        if self.head_sent() {
            return Err(exc_info);
        }
        let head = self.finish_head(status, headers, true)?;
        let mut state = self.announcement.state();
        if state.head_sent {
            return Err(exc_info);
        }
        state.head = Some(head);
        // What was written for the head that is replaced was not sent either.
        state.written = None;
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        Ok(())
    }

    fn announced(&self, set: Result<(), Error>, exc_info: bool) -> Result<Write, Error> {
        if let Err(error) = set {
            // The call has failed already: what the observer makes of it can't make it fail again.
            let _ = observe(self.hooks.as_ref(), || Event::Refused { error: &error, exc_info });
            return Err(error);
        }
        Ok(Write { announcement: self.announcement.clone(), hooks: self.hooks.clone() })
    }

    /// The same, with `change` applied to every head before the middleware further out sees it. What it refuses is the
    /// error of the call.
    #[must_use]
    pub fn wrap(self, change: impl Fn(&mut Head) -> Result<(), Error> + Send + Sync + 'static) -> Self {
        self.hook(Action::Change(Box::new(change)))
    }

    /// The same, with `observer` told of all that is done with it and with its `write`. An [`Event::Head`] that the observer
    /// refuses is the error of the call; what it makes of other events changes nothing.
    #[must_use]
    pub fn observe(self, observer: impl Fn(Event<'_>) -> Result<(), Error> + Send + Sync + 'static) -> Self {
        self.hook(Action::Observe(Box::new(observer)))
    }

    fn hook(self, action: Action) -> Self {
        Self { announcement: self.announcement, hooks: Some(Arc::new(Hook { action, outer: self.hooks })) }
    }

    /// Whether the head has been sent, so that it can't be replaced any more.
    pub fn head_sent(&self) -> bool {
        self.announcement.state().head_sent
    }

    /// From now on the head can't be replaced: data has been handed over to where the server picks it up.
    pub(super) fn commit(&self) {
        self.announcement.state().commit();
    }

    fn finish_head<S>(&self, status: S, headers: Headers, exc_info: bool) -> Result<Head, Error>
    where
        S: TryInto<Status, Error: Into<HeadError>>,
    {
        let status = status.try_into().map_err(|error| StartError::Head(error.into()))?;
        let mut head = Head { status, headers };
        let mut hook = self.hooks.as_ref();
        if hook.is_some() {
            // What the application itself did wrong is not to reach the middleware.
            head.check().map_err(StartError::Head)?;
        }
        while let Some(next) = hook {
            match &next.action {
                Action::Change(change) => change(&mut head)?,
                Action::Observe(observer) => observer(Event::Head { head: &head, exc_info })?,
            }
            hook = next.outer.as_ref();
        }
        head.check().map_err(StartError::Head)?;
        Ok(head)
    }
}

/// Tells all observers of that chain.
fn observe<'a>(mut hook: Option<&Arc<Hook>>, event: impl Fn() -> Event<'a>) -> Result<(), Error> {
    while let Some(next) = hook {
        if let Action::Observe(observer) = &next.action {
            observer(event())?;
        }
        hook = next.outer.as_ref();
    }
    Ok(())
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
    hooks: Option<Arc<Hook>>,
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
        let Some(len) = data.as_ref().map(Bytes::len) else { return Ok(()) };
        let handed_over = poll_fn(|cx| {
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
        .await;
        let _ = observe(self.hooks.as_ref(), || Event::Write { len, refused: handed_over.is_err() });
        handed_over
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
    /// `start_response` was called, with or without success.
    called: AtomicBool,
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

impl State {
    /// With the first data on its way the head is as good as sent.
    fn commit(&mut self) {
        self.head_sent |= self.head.is_some();
    }
}

impl Announcement {
    pub(super) fn start_response(self: &Arc<Self>) -> StartResponse {
        StartResponse { announcement: self.clone(), hooks: None }
    }

    /// The head that is to be sent now; afterwards it can't be replaced.
    pub(super) fn send_head(self: &mut Arc<Self>) -> Result<Head, StartError> {
        if let Some(announcement) = Arc::get_mut(self) {
            // The application is through with it: no lock.
            let state = announcement.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            state.head_sent = true;
            return state.head.take().ok_or(StartError::Never);
        }
        let mut state = self.state();
        let head = state.head.take().ok_or(StartError::Never)?;
        state.head_sent = true;
        Ok(head)
    }

    pub(super) fn has_head(&self) -> bool {
        self.state().head.is_some()
    }

    /// Whether the head is one by which the connection changes hands.
    pub(super) fn is_switching(&self) -> bool {
        self.state().head.as_ref().is_some_and(|head| head.status.code() == 101)
    }

    pub(super) fn take_written(&self) -> Option<Bytes> {
        // Mostly there is nothing, and to look costs less than to exchange.
        if !self.has_written.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        self.has_written.store(false, Ordering::Relaxed);
        let written = state.written.take();
        if written.is_some() {
            state.commit();
        }
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        written
    }

    /// Whether nothing was written that was not taken, and nobody is left who could write.
    pub(super) fn is_silent(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && !self.has_written.load(Ordering::Acquire)
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
    pub(super) fn close(self: &Arc<Self>) {
        // Mostly all others are gone by now. Only who has one could make another, so that nobody is left to be refused.
        if Arc::strong_count(self) == 1 {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> (Arc<Announcement>, StartResponse) {
        let announcement = Arc::new(Announcement::default());
        let start_response = announcement.start_response();
        (announcement, start_response)
    }

    #[test]
    fn a_second_call_is_refused_even_after_a_first_that_failed() {
        let (_, start_response) = started();
        start_response.start("nonsense", ()).unwrap_err();
        let error = start_response.start("200 OK", ()).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(StartError::Again)), "{error}");
        start_response.restart("500 Oops", (), Error::new("why")).unwrap();
    }

    #[tokio::test]
    async fn a_head_whose_first_data_was_picked_up_is_not_replaced() {
        let (announcement, start_response) = started();
        start_response.start("200 OK", ()).unwrap().write("data").await.unwrap();
        assert_eq!(announcement.take_written().unwrap(), "data");
        let error = start_response.restart("500 Oops", (), Error::new("why")).unwrap_err();
        assert_eq!(error.to_string(), "why");
    }

    #[tokio::test]
    async fn a_restart_drops_what_was_written_and_wakes_who_waits_to_write() {
        let (mut announcement, start_response) = started();
        let mut write = start_response.start("200 OK", ()).unwrap();
        write.write("old").await.unwrap();
        let mut second = Box::pin(write.write("new"));
        assert!(futures_util::poll!(&mut second).is_pending());
        start_response.restart("500 Oops", (), Error::new("why")).unwrap();
        second.await.unwrap();
        assert_eq!(announcement.take_written().unwrap(), "new");
        assert_eq!(announcement.send_head().unwrap().status.code(), 500);
    }

    #[test]
    fn wrappers_see_the_head_from_the_inside_out() {
        let (mut announcement, start_response) = started();
        let outer = start_response.wrap(|head| {
            let seen = head.headers.get("X-Inner").is_some();
            head.headers.push("X-Outer", if seen { "saw the inner one" } else { "saw nothing" });
            Ok(())
        });
        let inner = outer.wrap(|head| {
            head.headers.push("X-Inner", "1");
            Ok(())
        });
        inner.start("200 OK", ()).unwrap();
        assert_eq!(announcement.send_head().unwrap().headers.get("X-Outer"), Some(&b"saw the inner one"[..]));
    }

    #[test]
    fn what_a_wrapper_makes_of_a_head_is_checked_too() {
        let (_, start_response) = started();
        let wrapped = start_response.wrap(|head| {
            head.headers.push("Connection", "close");
            Ok(())
        });
        assert!(wrapped.start("200 OK", ()).is_err());
    }

    #[tokio::test]
    async fn an_observer_is_told_of_heads_refusals_and_writes() {
        let (announcement, start_response) = started();
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = told.clone();
        let observed = start_response.observe(move |event| {
            list.lock().unwrap().push(format!("{event:?}"));
            Ok(())
        });
        let mut write = observed.start("200 OK", ()).unwrap();
        write.write("four").await.unwrap();
        observed.start("200 OK", ()).unwrap_err();
        announcement.close();
        write.write("late").await.unwrap_err();
        let told = told.lock().unwrap();
        assert!(told[0].starts_with("Head {"), "{told:?}");
        assert_eq!(told[1], "Write { len: 4, refused: false }");
        assert!(told[2].starts_with("Refused {"), "{told:?}");
        assert_eq!(told[3], "Write { len: 4, refused: true }");
    }

    #[test]
    fn the_blocking_face_of_write_waits_for_room() {
        let (announcement, start_response) = started();
        let mut write = start_response.start("200 OK", ()).unwrap();
        let writer = std::thread::spawn(move || (0..100).try_for_each(|n| write.write_blocking(n.to_string())));
        let mut taken = String::new();
        while !taken.ends_with("99") {
            match announcement.take_written() {
                Some(written) => taken.push_str(std::str::from_utf8(&written).unwrap()),
                None => std::thread::yield_now(),
            }
        }
        writer.join().unwrap().unwrap();
        assert_eq!(taken, (0..100).map(|n| n.to_string()).collect::<String>());
    }
}
