//! The driver: turns an application and an environ into a head and a body, for gateways and for middleware that touches bodies.

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::body::{Body, FileReader, Frame, Frames};
use super::callable::Application;
use super::environ::{Environ, Facts, Variables};
use super::error::Error;
use super::errors::Errors;
use super::head::{Head, Headers, Status};
use super::start_response::{Announcement, StartError, StartResponse};
use super::upgrade::Upgrade;
use crate::protocol::cgi::allows_body;

/// A response whose head is settled and whose body is still to be pulled.
#[derive(Debug)]
pub struct Response {
    /// Status and headers, checked.
    pub head: Head,
    /// The body: what `write` was given and what the application returned, in order.
    pub body: ResponseBody,
}

impl Response {
    /// For middleware: names this head to the server further out, and gives this body back to be returned.
    ///
    /// # Errors
    ///
    /// Those of [`StartResponse::start`].
    pub fn pass_on(self, start_response: &StartResponse) -> Result<Body, Error> {
        start_response.start(self.head.status, self.head.headers)?;
        Ok(self.body.into())
    }
}

/// Calls an application and waits until its head may be sent: with the first non-empty data, a flush, or the end.
///
/// What the application does wrong before that is the error. A panic is one too. Where the length of the body is certain and the
/// application named none, Content-Length is added (PEP 3333, "Handling the Content-Length Header"). Bodies that HTTP
/// does not allow (HEAD, 204, 304) are closed without being iterated further.
///
/// Dropping the future drops the application's, at whatever it awaits; [`Call`] can be closed before.
///
/// # Errors
///
/// The application's own, and [`StartError::Never`]. The body has been closed then.
pub async fn call<A: Application>(application: A, environ: Environ) -> Result<Response, Error> {
    Call::new(application, environ).response().await
}

/// A call under way, for those who may have to give it up before it has a head: a client that leaves, a time limit.
pub struct Call {
    /// There until the response has it.
    running: Option<Running>,
    /// Of the request, for the log. The response has them as soon as there is one.
    facts: Option<Arc<Facts>>,
    is_head: bool,
    /// Where the client's connection may be taken over.
    upgrade: Option<Upgrade>,
    /// What comes of it once it is closed, where nothing is sent of its body. Boxed, since that is seldom.
    outcome: Option<Box<Result<Head, Error>>>,
}

impl Call {
    /// Prepares the call. Nothing happens before it is polled.
    pub fn new<A: Application>(application: A, environ: Environ) -> Self {
        let announcement = Arc::new(Announcement::default());
        let facts = Some(environ.facts().clone());
        let is_head = environ.method() == b"HEAD";
        let upgrade = environ.extensions().get::<Upgrade>().cloned();
        let start_response = announcement.start_response();
        let state = State::Calling(Box::pin(async move { application.call(environ, start_response).await }));
        Self { running: Some(Running::new(state, announcement)), facts, is_head, upgrade, outcome: None }
    }

    /// What [`call`] waits for. To be called to its end once; until the head is there, it may be dropped and called again.
    ///
    /// # Errors
    ///
    /// As [`call`].
    pub async fn response(&mut self) -> Result<Response, Error> {
        poll_fn(|cx| self.poll_response(cx)).await
    }

    /// As [`Call::response`], for those who hold many.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, Error>> {
        let mut response = None;
        ready!(self.poll_into(&mut response, cx))?;
        Poll::Ready(response.ok_or_else(|| StartError::Never.into()))
    }

    /// The same with a place for the response, which is large, so that it is not moved from one function to the next.
    fn poll_into(&mut self, response: &mut Option<Response>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(running) = &mut self.running else { return Poll::Ready(Err(StartError::Never.into())) };
        if self.outcome.is_none() {
            let first = match running.poll_first(cx) {
                Poll::Ready(first) => first,
                // What its client sends comes behind the 101, so that the application may be waiting for just that.
                Poll::Pending if is_taken_over(self.upgrade.as_ref()) && running.announcement.is_switching() => {
                    Ok(Some(Frame::Flush))
                }
                Poll::Pending => return Poll::Pending,
            };
            let settled = first.and_then(|first| Ok((running.announcement.send_head()?, first)));
            match settled {
                Ok((head, first)) if allows_body(head.status.code(), if self.is_head { b"HEAD" } else { b"" }) => {
                    return Poll::Ready(self.with_body(head, first, response));
                }
                Ok((head, first)) if head.status.code() == 101 && is_taken_over(self.upgrade.as_ref()) => {
                    return Poll::Ready(self.with_connection(head, first, response));
                }
                // Nobody will see what else there is of it.
                without_body => self.outcome = Some(Box::new(without_body.map(|(head, _)| head))),
            }
        }
        ready!(running.poll_close(cx));
        let outcome = self.outcome.take().map_or(Err(StartError::Never.into()), |outcome| *outcome);
        Poll::Ready(outcome.and_then(|head| self.bodiless(head, response)))
    }

    fn with_body(
        &mut self,
        mut head: Head,
        first: Option<Frame>,
        response: &mut Option<Response>,
    ) -> Result<(), Error> {
        // It was checked by `start_response`, so that it is no error here.
        let declared = head.content_length().map_err(StartError::from)?;
        let running = self.running.take().ok_or(StartError::Never)?;
        let len = running.certain_len(first.as_ref());
        if declared.is_none()
            && let Some(len) = len
        {
            head.headers.push_content_length(len);
        }
        if len != Some(0) && !head.headers.contains("Content-Type") {
            // CVE-2020-24553: a type that is missing must not be guessed by anybody.
            head.headers.push("Content-Type", "text/plain");
        }
        let (unsent, facts) = (declared, self.facts.take());
        let body = ResponseBody { running, first, file: None, unsent, announced: declared, facts, over: false };
        *response = Some(Response { head, body });
        Ok(())
    }

    /// What the application gives from here on is what the client gets, in a protocol that is not ours.
    fn with_connection(
        &mut self,
        head: Head,
        first: Option<Frame>,
        response: &mut Option<Response>,
    ) -> Result<(), Error> {
        let (running, facts) = (self.running.take().ok_or(StartError::Never)?, self.facts.take());
        let body = ResponseBody { running, first, file: None, unsent: None, announced: None, facts, over: false };
        *response = Some(Response { head, body });
        Ok(())
    }

    fn bodiless(&mut self, mut head: Head, response: &mut Option<Response>) -> Result<(), Error> {
        let announced = head.content_length().map_err(StartError::from)?;
        if !allows_body(head.status.code(), b"") {
            // RFC 9110 8.6: not with 1xx and 204. With 304 it would be that of another response, which few servers get right.
            head.headers.remove("Content-Length");
        }
        let (running, facts) = (self.running.take().ok_or(StartError::Never)?, self.facts.take());
        let body = ResponseBody { running, first: None, file: None, unsent: None, announced, facts, over: true };
        *response = Some(Response { head, body });
        Ok(())
    }

    /// Gives the call up: what the application awaits is dropped, or its body closed if there is one already.
    pub async fn close(&mut self) {
        if let Some(running) = &mut self.running {
            running.close().await;
        }
    }
}

/// Whether the application takes the client's connection over.
fn is_taken_over(upgrade: Option<&Upgrade>) -> bool {
    upgrade.is_some_and(|upgrade| upgrade.accepted().is_some())
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("is_head", &self.is_head).finish_non_exhaustive()
    }
}

/// As [`call`], for gateways: an error becomes its page, and the log learns its causes with the request id.
pub async fn answer<A: Application>(application: A, environ: Environ) -> Response {
    let mut answer = Answer::new(application, environ);
    poll_fn(|cx| answer.poll(cx)).await
}

/// What [`answer`] waits for, for gateways that hold many.
#[derive(Debug)]
pub struct Answer {
    step: Step,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are calling")]
enum Step {
    Calling(Call),
    /// Boxed, since few are.
    Ready(Option<Box<Response>>),
}

impl Answer {
    /// Prepares the call. Nothing happens before it is polled.
    pub fn new<A: Application>(application: A, environ: Environ) -> Self {
        Self { step: Step::Calling(Call::new(application, environ)) }
    }

    /// One that is ready: the page for a request that no application sees.
    pub fn of(page: Response) -> Self {
        Self { step: Step::Ready(Some(Box::new(page))) }
    }

    /// The response, once; pending ever after. Dropping this before drops what the application awaits.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        let mut response = None;
        ready!(self.poll_into(&mut response, cx));
        response.map_or(Poll::Pending, Poll::Ready)
    }

    /// The same with a place for the response, which is large: it is empty where the response has been given out before.
    pub(crate) fn poll_into(&mut self, response: &mut Option<Response>, cx: &mut Context<'_>) -> Poll<()> {
        let call = match &mut self.step {
            Step::Calling(call) => call,
            Step::Ready(page) => {
                *response = page.take().map(|page| *page);
                return Poll::Ready(());
            }
        };
        let Err(error) = ready!(call.poll_into(response, cx)) else { return Poll::Ready(()) };
        let facts = call.facts.take().unwrap_or_else(|| Environ::new(Variables::new()).facts().clone());
        log_failure(facts.errors(), facts.request_id(), "answered with an error page", &error);
        let mut page = error_page(error.status(), facts.request_id(), call.is_head);
        if let Some(seconds) = error.retry_after() {
            page.head.headers.push("Retry-After", seconds.to_string());
        }
        page.body.facts = Some(facts);
        *response = Some(page);
        Poll::Ready(())
    }
}

/// The line about a failed request, for the server's log.
pub fn log_failure(errors: &Errors, request_id: &str, outcome: &str, error: &Error) {
    errors.line(format_args!("request {request_id} {outcome}: {error}"));
}

/// The page of a status, with nothing on it but the status and the request id.
pub fn error_page(code: u16, request_id: &str, is_head: bool) -> Response {
    let status = Status::new(code).unwrap_or_else(|_| Status::from(http::StatusCode::INTERNAL_SERVER_ERROR));
    let text = format!("{status}\nrequest {request_id}\n");
    let headers =
        Headers::from([("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", &text.len().to_string())]);
    let body = if is_head { Body::empty() } else { Body::from(text) };
    Response { head: Head { status, headers }, body: body.into() }
}

/// The body of a [`Response`]. It counts: more than Content-Length announced is not sent, and less is an error, by which the
/// gateway cuts the response so that the client can see it.
pub struct ResponseBody {
    running: Running,
    first: Option<Frame>,
    /// A part of a file that is being read, for callers that asked for data.
    file: Option<Box<FileReader>>,
    /// What Content-Length still owes.
    unsent: Option<u64>,
    announced: Option<u64>,
    /// Of the request whose body it is, for the log.
    facts: Option<Arc<Facts>>,
    over: bool,
}

/// A response that ended before its Content-Length.
#[derive(Debug, thiserror::Error)]
#[error("the body ended {missing} bytes before its Content-Length of {announced}")]
pub struct BodyTooShort {
    announced: u64,
    missing: u64,
}

impl ResponseBody {
    /// The next frame; `None` at the end, after which the body has been closed. After an error it has not: see [`ResponseBody::poll_close`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = match self.first.take() {
            Some(frame) => Some(Ok(frame)),
            None => ready!(self.running.poll_frame(cx)),
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => match self.count(frame) {
                Some(frame) => Some(Ok(frame)),
                // All that Content-Length announced is sent: nothing more is asked of the application than to close.
                None => {
                    ready!(self.running.poll_close(cx));
                    self.over = true;
                    None
                }
            },
            Some(Err(error)) => {
                self.over = true;
                Some(Err(error))
            }
            None => {
                self.over = true;
                match (self.unsent, self.announced) {
                    (Some(missing @ 1..), Some(announced)) => Some(Err(BodyTooShort { announced, missing }.into())),
                    _ => None,
                }
            }
        })
    }

    /// All of the body, where it is one piece that is there already, or none: for gateways that send such an answer in one go.
    ///
    /// The body is over and closed then. Elsewhere this does nothing: its frames are to be asked for, which also tells what is wrong with it.
    #[cfg_attr(not(feature = "fastcgi"), allow(dead_code, reason = "that gateway has a use for it"))]
    pub(crate) fn take_whole(&mut self) -> Option<Bytes> {
        if self.over {
            return self.file.is_none().then(Bytes::new);
        }
        let len = match &self.first {
            None => 0,
            Some(Frame::Data(data)) => data.len() as u64,
            Some(_) => return None,
        };
        if self.file.is_some() || self.unsent.unwrap_or(len) != len || !self.running.close_if_spent() {
            return None;
        }
        self.over = true;
        match self.first.take() {
            Some(Frame::Data(data)) => Some(data),
            _ => Some(Bytes::new()),
        }
    }

    /// What is known of the request, for a gateway that is through with its body.
    #[cfg_attr(not(feature = "fastcgi"), allow(dead_code, reason = "that gateway uses them again"))]
    pub(crate) fn take_facts(&mut self) -> Option<Arc<Facts>> {
        self.facts.take()
    }

    /// As [`ResponseBody::poll_frame`], with parts of files read into data.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        loop {
            if let Some(file) = &mut self.file {
                match ready!(file.poll_block(cx)) {
                    Some(block) => return Poll::Ready(Some(block.map(Frame::Data))),
                    None => self.file = None,
                }
            }
            match ready!(self.poll_frame(cx)) {
                Some(Ok(Frame::File(range))) => self.file = Some(Box::new(FileReader::new(range))),
                other => return Poll::Ready(other),
            }
        }
    }

    /// The next piece of data or what else a body holds; `None` at the end.
    ///
    /// # Errors
    ///
    /// The application's own, and [`BodyTooShort`]. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Frame, Error>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// All data, up to a limit.
    ///
    /// # Errors
    ///
    /// The application's own, [`BodyTooShort`], and one for a body of more than `limit` bytes.
    pub async fn read_to_end(&mut self, limit: usize) -> Result<Bytes, Error> {
        let mut all = bytes::BytesMut::new();
        while let Some(frame) = self.next().await {
            if let Frame::Data(data) = frame? {
                if all.len() + data.len() > limit {
                    return Err(Error::new(format!("the response body is longer than the limit of {limit} bytes")));
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all.freeze())
    }

    /// Closes the application's body, which is PEP 3333's `close()`: for the ways out that are not the end.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.over = true;
        self.first = None;
        self.file = None;
        self.running.poll_close(cx)
    }

    /// See [`ResponseBody::poll_close`].
    pub async fn close(&mut self) {
        poll_fn(|cx| self.poll_close(cx)).await;
    }

    /// For gateways that cut the response after an error: tells the request's log.
    pub fn log_cut(&self, error: &Error) {
        if let Some(facts) = &self.facts {
            log_failure(facts.errors(), facts.request_id(), "was cut", error);
        }
    }

    /// How many bytes are to come, where that is certain.
    pub fn exact_len(&self) -> Option<u64> {
        match (self.over, &self.file) {
            (true, _) => Some(0),
            (false, None) => self.unsent.or_else(|| self.running.certain_len(self.first.as_ref())),
            // It was counted as a whole when it was begun.
            (false, Some(file)) => self.unsent.map(|unsent| unsent + file.remaining()),
        }
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over && self.file.is_none()
    }

    fn count(&mut self, mut frame: Frame) -> Option<Frame> {
        let Some(unsent) = &mut self.unsent else { return Some(frame) };
        let len = match &frame {
            Frame::Data(data) => data.len() as u64,
            Frame::File(range) => range.len,
            Frame::Flush | Frame::Trailers(_) => return Some(frame),
        };
        if len > *unsent {
            // PEP 3333: a server must not send more than Content-Length announced.
            let announced = self.announced.unwrap_or_default();
            if let Some(facts) = &self.facts {
                facts.errors().line(format_args!(
                    "request {} gave at least {} bytes more than its Content-Length of {announced}; they were not sent",
                    facts.request_id(),
                    len - *unsent
                ));
            }
            match &mut frame {
                // Shorter than the data, so it fits.
                Frame::Data(data) => data.truncate(*unsent as usize),
                Frame::File(range) => range.len = *unsent,
                Frame::Flush | Frame::Trailers(_) => {}
            }
            // "… and should stop iterating over the response when enough data has been sent."
            self.running.end();
            if *unsent == 0 {
                return None;
            }
        }
        *unsent -= len.min(*unsent);
        Some(frame)
    }
}

/// A body as it is, for responses that a gateway or middleware makes itself.
impl From<Body> for ResponseBody {
    fn from(body: Body) -> Self {
        Self {
            running: Running::new(State::Iterating(body), Arc::default()),
            first: None,
            file: None,
            unsent: None,
            announced: None,
            facts: None,
            over: false,
        }
    }
}

/// For middleware that passes a response on as its own body.
impl From<ResponseBody> for Body {
    fn from(body: ResponseBody) -> Self {
        Self::frames(body)
    }
}

impl Frames for ResponseBody {
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        Self::poll_frame(Pin::into_inner(self), cx)
    }

    fn exact_len(&self) -> Option<u64> {
        Self::exact_len(self)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Self::poll_close(Pin::into_inner(self), cx)
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("exact_len", &self.exact_len()).finish_non_exhaustive()
    }
}

/// One call of an application on its way from the call to the close.
struct Running {
    state: State,
    announcement: Arc<Announcement>,
    /// A frame that waits for what was written while it was made.
    held: Option<Frame>,
    /// All that was to be closed and dropped has been.
    closed: bool,
}

impl Running {
    fn new(state: State, announcement: Arc<Announcement>) -> Self {
        Self { state, announcement, held: None, closed: false }
    }
}

enum State {
    Calling(Pin<Box<dyn Future<Output = Result<Body, Error>> + Send>>),
    Iterating(Body),
    /// At its end and not asked for frames again, only closed.
    Ended(Body),
    Over,
}

impl Running {
    /// The frame with which the head goes out; `None` for a response without a body.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        loop {
            match ready!(self.poll_frame(cx)) {
                Some(Ok(Frame::Flush)) if !self.announcement.has_head() => {}
                first => return Poll::Ready(first.transpose()),
            }
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        loop {
            // What is written goes before what is returned.
            if let Some(written) = self.announcement.take_written() {
                return Poll::Ready(Some(Ok(Frame::Data(written))));
            }
            match self.held.take() {
                Some(Frame::Data(data)) if data.is_empty() => {}
                Some(frame) => return Poll::Ready(Some(Ok(frame))),
                None => {}
            }
            // A panic costs this request only. What panicked is not used again, only dropped.
            let step = catch_unwind(AssertUnwindSafe(|| self.state.poll(cx)));
            match step.unwrap_or_else(|payload| Poll::Ready(Some(Err(Error::from_panic(payload))))) {
                Poll::Ready(Some(Ok(frame))) => self.held = Some(frame),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => {
                    self.end();
                    // The application may have written just before its end.
                    if let Some(written) = self.announcement.take_written() {
                        return Poll::Ready(Some(Ok(Frame::Data(written))));
                    }
                    ready!(self.poll_close(cx));
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    self.announcement.wake_on_write(cx);
                    // A write may have come between the look and the waker; only one by this very task needs no waking.
                    let Some(written) = self.announcement.take_written() else { return Poll::Pending };
                    return Poll::Ready(Some(Ok(Frame::Data(written))));
                }
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.closed {
            return Poll::Ready(());
        }
        self.announcement.close();
        self.held = None;
        self.end();
        if let State::Ended(body) = &mut self.state {
            // A close that panics has closed as far as it ever will.
            if let Ok(step) = catch_unwind(AssertUnwindSafe(|| body.poll_close(cx))) {
                ready!(step);
            }
        }
        let state = std::mem::replace(&mut self.state, State::Over);
        // What the application does as it is dropped is its own too.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(state)));
        self.closed = true;
        Poll::Ready(())
    }

    /// Closes it, where nothing more can come of it and nothing has to be done or waited for: the usual end, for which this costs less than
    /// asking for a frame and for the close.
    fn close_if_spent(&mut self) -> bool {
        let is_spent = match &self.state {
            State::Iterating(body) => body.is_spent(),
            State::Calling(_) | State::Ended(_) => false,
            State::Over => self.closed,
        };
        let is_spent = is_spent && self.held.is_none() && self.announcement.is_silent();
        self.closed |= is_spent;
        is_spent
    }

    /// Asks the body for no more frames.
    fn end(&mut self) {
        if let State::Iterating(body) = &mut self.state {
            self.state = State::Ended(std::mem::take(body));
        }
    }

    async fn close(&mut self) {
        poll_fn(|cx| self.poll_close(cx)).await;
    }

    /// The length of the whole body when `first` is sent and it can't change any more.
    fn certain_len(&self, first: Option<&Frame>) -> Option<u64> {
        let rest = match &self.state {
            State::Calling(_) => return None,
            State::Iterating(body) => body.exact_len()?,
            State::Ended(_) | State::Over => 0,
        };
        match (first, &self.held) {
            (_, Some(_)) => None,
            (None, None) => Some(rest),
            (Some(Frame::Data(data)), None) => Some(rest + data.len() as u64),
            (Some(Frame::File(range)), None) => Some(rest + range.len),
            (Some(Frame::Flush | Frame::Trailers(_)), None) => None,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        // Whoever still writes is told that nobody takes it.
        self.announcement.close();
        // What an application awaits may panic when it is dropped: that costs its own request, not those beside it.
        let state = std::mem::replace(&mut self.state, State::Over);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(state)));
    }
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        if let Self::Calling(calling) = self {
            match ready!(calling.as_mut().poll(cx)) {
                Ok(body) => *self = Self::Iterating(body),
                Err(error) => {
                    *self = Self::Over;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        match self {
            Self::Iterating(body) => body.poll_frame(cx),
            Self::Calling(_) | Self::Ended(_) | Self::Over => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::application::Variables;

    #[tokio::test]
    async fn a_file_that_is_being_read_is_still_to_come() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let file = Arc::new(file);
        let application = move |_: Environ, start_response: StartResponse| {
            let file = file.clone();
            async move {
                start_response.start("200 OK", [("Content-Length", "100")])?;
                Ok::<_, Error>(super::super::body::FileRange { file, offset: 0, len: 100, block_size: 40 })
            }
        };
        let mut body = call(application, Environ::new(Variables::new())).await.unwrap().body;
        for left in [60, 20, 0] {
            body.next().await.unwrap().unwrap();
            assert_eq!(body.exact_len(), Some(left));
        }
        assert!(body.next().await.is_none());
    }

    /// Frames from a list, with a close that takes two polls. It tells what was done to it, and panics where PEP 3333's server
    /// would break a rule.
    struct Listed {
        frames: VecDeque<Result<Frame, Error>>,
        ended: bool,
        closing: bool,
        told: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Frames for Listed {
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
            assert!(!self.ended && !self.closing, "asked for a frame after the end");
            let frame = self.frames.pop_front();
            self.ended = !matches!(frame, Some(Ok(_)));
            Poll::Ready(frame)
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            if !std::mem::replace(&mut self.closing, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.told.lock().unwrap().push("close");
            Poll::Ready(())
        }
    }

    impl Drop for Listed {
        fn drop(&mut self) {
            self.told.lock().unwrap().push("drop");
        }
    }

    fn environ(method: &str) -> Environ {
        Environ::new(Variables::from_iter([("REQUEST_METHOD", method)]))
    }

    type Told = Arc<Mutex<Vec<&'static str>>>;

    fn app(length: Option<&'static str>, frames: Vec<Result<Frame, Error>>) -> (impl Application, Told) {
        let told = Told::default();
        let list = told.clone();
        let frames = Mutex::new(VecDeque::from(frames));
        let app = move |_: Environ, start_response: StartResponse| {
            let headers = length.map(|length| ("Content-Length", length)).into_iter().collect::<Headers>();
            let frames = std::mem::take(&mut *frames.lock().unwrap());
            let body = Body::frames(Listed { frames, ended: false, closing: false, told: list.clone() });
            async move {
                start_response.start("200 OK", headers)?;
                Ok(body)
            }
        };
        (app, told)
    }

    fn data(text: &'static str) -> Result<Frame, Error> {
        Ok(Frame::Data(text.into()))
    }

    #[tokio::test]
    async fn a_close_that_takes_time_is_waited_for_and_nothing_asked_after_the_end() {
        let (app, told) = app(None, vec![data("a"), data("b")]);
        let mut response = call(app, environ("GET")).await.unwrap();
        assert_eq!(response.body.read_to_end(9).await.unwrap(), "ab");
        assert_eq!(*told.lock().unwrap(), ["close", "drop"]);
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_cut_to_its_length_and_closed() {
        let (app, told) = app(Some("3"), vec![data("ab"), data("cd"), data("ef"), data("gh")]);
        let mut response = call(app, environ("GET")).await.unwrap();
        assert_eq!(response.body.read_to_end(9).await.unwrap(), "abc");
        assert_eq!(*told.lock().unwrap(), ["close", "drop"]);
    }

    #[tokio::test]
    async fn a_body_without_a_head_is_closed_before_the_error_is_given() {
        let told = Told::default();
        let list = told.clone();
        let app = move |_: Environ, _: StartResponse| {
            let frames = VecDeque::from([data("a")]);
            std::future::ready(Ok(Body::frames(Listed { frames, ended: false, closing: false, told: list.clone() })))
        };
        let error = call(app, environ("GET")).await.unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(StartError::Never)), "{error}");
        assert_eq!(*told.lock().unwrap(), ["close", "drop"]);
    }

    #[tokio::test]
    async fn a_body_for_head_is_closed_without_being_sent() {
        let (app, told) = app(Some("2"), vec![data("ab")]);
        let mut response = call(app, environ("HEAD")).await.unwrap();
        assert_eq!(*told.lock().unwrap(), ["close", "drop"]);
        assert_eq!(response.head.headers.get("Content-Length"), Some(&b"2"[..]));
        assert!(response.body.next().await.is_none());
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_closes_the_body_it_has() {
        struct Stalls(Told);
        impl Frames for Stalls {
            fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
                Poll::Pending
            }
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
                self.0.lock().unwrap().push("close");
                Poll::Ready(())
            }
        }
        let told = Told::default();
        let list = told.clone();
        let app = move |_: Environ, _: StartResponse| std::future::ready(Ok(Body::frames(Stalls(list.clone()))));
        let mut call = Call::new(app, environ("GET"));
        assert!(futures_util::poll!(Box::pin(call.response())).is_pending());
        call.close().await;
        assert_eq!(*told.lock().unwrap(), ["close"]);
    }

    #[tokio::test]
    async fn a_response_passed_on_keeps_its_head_and_its_body() {
        let (app, told) = app(None, vec![data("a"), Ok(Frame::Flush), data("b")]);
        let app = Arc::new(app);
        let around = move |environ: Environ, start_response: StartResponse| {
            let app = app.clone();
            async move { call(app, environ).await?.pass_on(&start_response) }
        };
        let mut response = call(around, environ("GET")).await.unwrap();
        assert_eq!(response.head.status.code(), 200);
        assert_eq!(response.body.read_to_end(9).await.unwrap(), "ab");
        assert_eq!(*told.lock().unwrap(), ["close", "drop"]);
    }

    async fn head_of(status: &'static str, headers: Headers, body: &'static str) -> Head {
        let app = move |_: Environ, start_response: StartResponse| {
            let headers = headers.clone();
            async move { start_response.start(status, headers).map(|_| body) }
        };
        call(app, environ("GET")).await.unwrap().head
    }

    #[tokio::test]
    async fn cve_2020_24553_a_type_that_is_missing_is_text_plain() {
        let head = head_of("200 OK", Headers::new(), "<script>").await;
        assert_eq!(head.headers.get("Content-Type"), Some(&b"text/plain"[..]));
        let head = head_of("200 OK", [("content-type", "text/html")].into(), "<script>").await;
        assert_eq!(head.headers.all("Content-Type").collect::<Vec<_>>(), [b"text/html"]);
        assert!(!head_of("200 OK", Headers::new(), "").await.headers.contains("Content-Type"));
    }

    #[tokio::test]
    async fn a_204_and_a_304_carry_no_content_length() {
        for status in ["204 No Content", "304 Not Modified"] {
            let head = head_of(status, [("Content-Length", "5"), ("ETag", "x")].into(), "hello").await;
            assert_eq!(head.headers.iter().collect::<Vec<_>>(), [(&b"ETag"[..], &b"x"[..])], "{status}");
        }
    }

    #[tokio::test]
    async fn a_panic_in_what_is_dropped_costs_its_own_request_only() {
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let app = |_: Environ, _: StartResponse| async {
            let _panics = Panics;
            std::future::pending::<()>().await;
            Ok("")
        };
        let mut answering = Box::pin(answer(app, environ("GET")));
        assert!(futures_util::poll!(&mut answering).is_pending());
        drop(answering);
    }
}
