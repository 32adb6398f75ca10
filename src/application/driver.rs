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
use super::environ::Environ;
use super::error::Error;
use super::errors::Errors;
use super::head::{Head, Headers, Status};
use super::start_response::{Announcement, StartError};
use crate::protocol::cgi::allows_body;

/// A response whose head is settled and whose body is still to be pulled.
#[derive(Debug)]
pub struct Response {
    /// Status and headers, checked.
    pub head: Head,
    /// The body: what `write` was given and what the application returned, in order.
    pub body: ResponseBody,
}

/// Calls an application and waits until its head may be sent: with the first non-empty data, a flush, or the end.
///
/// What the application does wrong before that is the error. A panic is one too. Where the length of the body is certain and the
/// application named none, Content-Length is added (PEP 3333, "Handling the Content-Length Header"). Bodies that HTTP
/// does not allow (HEAD, 204, 304) are closed without being iterated further.
///
/// Dropping the future drops the application's, at whatever it awaits.
///
/// # Errors
///
/// The application's own, and [`StartError::Never`].
pub async fn call<A: Application>(application: A, environ: Environ) -> Result<Response, Error> {
    let announcement = Arc::new(Announcement::default());
    let errors = environ.errors();
    let is_head = environ.method() == b"HEAD";
    let start_response = announcement.start_response();
    let mut running = Running {
        state: State::Calling(Box::pin(async move { application.call(environ, start_response).await })),
        announcement,
        held: None,
    };
    let first = match poll_fn(|cx| running.poll_first(cx)).await {
        Ok(first) => first,
        Err(error) => {
            running.close().await;
            return Err(error);
        }
    };
    let mut head = running.announcement.send_head()?;
    let bodiless = !allows_body(head.status.code(), if is_head { b"HEAD" } else { b"" });
    let declared = head.content_length().map_err(StartError::from)?;
    if declared.is_none()
        && !bodiless
        && let Some(len) = running.certain_len(first.as_ref())
    {
        head.headers.push("Content-Length", len.to_string());
    }
    if bodiless && !is_head && head.headers.contains("Content-Length") && head.status.code() != 304 {
        // RFC 9110 8.6: not with 1xx and 204.
        head.headers.remove("Content-Length");
    }
    let mut body = ResponseBody {
        running,
        first,
        file: None,
        unsent: declared.filter(|_| !bodiless),
        announced: declared,
        errors,
        over: false,
    };
    if bodiless {
        body.close().await;
    }
    Ok(Response { head, body })
}

/// As [`call`], for gateways: an error becomes its page, and the log learns its causes with the request id.
pub async fn answer<A: Application>(application: A, environ: Environ) -> Response {
    let copy = environ.without_input();
    match call(application, environ).await {
        Ok(response) => response,
        Err(error) => {
            log_failure(&copy.errors(), copy.request_id(), "answered with an error page", &error);
            error_page(error.status(), copy.request_id(), copy.method() == b"HEAD")
        }
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
    file: Option<FileReader>,
    /// What Content-Length still owes.
    unsent: Option<u64>,
    announced: Option<u64>,
    errors: Errors,
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
            Some(Ok(frame)) => self.count(frame).map(Ok),
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
                Some(Ok(Frame::File(range))) => self.file = Some(FileReader::new(range)),
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

    /// How many bytes are to come, where that is certain.
    pub fn exact_len(&self) -> Option<u64> {
        match (self.over, &self.file) {
            (true, _) => Some(0),
            (false, None) => self.unsent.or_else(|| self.running.certain_len(self.first.as_ref())),
            (false, Some(_)) => self.unsent,
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
            self.errors.line(format_args!(
                "the application gave at least {} bytes more than its Content-Length of {announced}; they were not sent",
                len - *unsent
            ));
            match &mut frame {
                // Shorter than the data, so it fits.
                Frame::Data(data) => data.truncate(*unsent as usize),
                Frame::File(range) => range.len = *unsent,
                Frame::Flush | Frame::Trailers(_) => {}
            }
            if *unsent == 0 {
                self.over = true;
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
            running: Running { state: State::Iterating(body), announcement: Arc::default(), held: None },
            first: None,
            file: None,
            unsent: None,
            announced: None,
            errors: Errors::default(),
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
}

enum State {
    Calling(Pin<Box<dyn Future<Output = Result<Body, Error>> + Send>>),
    Iterating(Body),
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
        self.announcement.close();
        self.held = None;
        if let State::Iterating(body) = &mut self.state {
            // A close that panics has closed as far as it ever will.
            if let Ok(step) = catch_unwind(AssertUnwindSafe(|| body.poll_close(cx))) {
                ready!(step);
            }
        }
        self.state = State::Over;
        Poll::Ready(())
    }

    async fn close(&mut self) {
        poll_fn(|cx| self.poll_close(cx)).await;
    }

    /// The length of the whole body when `first` is sent and it can't change any more.
    fn certain_len(&self, first: Option<&Frame>) -> Option<u64> {
        let rest = match &self.state {
            State::Calling(_) => return None,
            State::Iterating(body) => body.exact_len()?,
            State::Over => 0,
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
        // Whoever still writes is told that nobody takes it.
        self.announcement.close();
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
            Self::Calling(_) | Self::Over => Poll::Ready(None),
        }
    }
}
