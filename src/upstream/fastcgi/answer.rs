//! The body of an answer, pulled from the server as the client takes it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::connect::Connect;
use super::exchange::{Exchange, Part};
use super::failure::Cause;
use super::forward;
use super::pool::Place;
use crate::application::{Error, Frame, Frames};
use crate::protocol::fastcgi::ProtocolStatus;

/// An answer whose head has been passed on.
///
/// Pulling it also sends what is left of the request. Dropped before its end it aborts the request and closes the connection.
pub(super) struct Answer<C: Connect> {
    /// Until the end.
    running: Option<(Exchange<C::Stream>, Place<C>)>,
    first: Bytes,
    next: Option<Result<Part, Cause>>,
    /// Something was given out, the head at least, and what comes next is not here yet.
    to_flush: bool,
    /// Whether there is a client that takes it.
    is_wanted: bool,
}

impl<C: Connect> Answer<C> {
    pub(super) fn new(exchange: Exchange<C::Stream>, place: Place<C>) -> Self {
        let running = Some((exchange, place));
        Self { running, first: Bytes::new(), next: None, to_flush: true, is_wanted: true }
    }

    /// What came together with the head.
    pub(super) fn begin_with(&mut self, first: Bytes, next: Option<Result<Part, Cause>>) {
        (self.first, self.next) = (first, next);
    }

    /// The request has ended; its connection goes back if another request may follow on it.
    pub(super) fn end(&mut self, application_status: u32, protocol_status: ProtocolStatus) {
        let Some((exchange, place)) = self.running.take() else { return };
        if application_status != 0 || protocol_status != ProtocolStatus::RequestComplete {
            let (request_id, server) = (exchange.request.environ.request_id(), &*exchange.server);
            tracing::info!(
                request_id,
                server,
                application_status,
                ?protocol_status,
                "the server ended the request with a status of its own"
            );
        }
        if let Some(connection) = exchange.into_connection() {
            place.put_back(connection);
        }
    }

    fn cut(&mut self, cause: Cause) -> Error {
        let Some((mut exchange, place)) = self.running.take() else { return Error::new(cause.to_string()) };
        exchange.finish_stderr();
        drop(place);
        let failure = cause.at(&exchange.server);
        if self.is_wanted {
            forward::log(&failure, &exchange.request.environ, "the answer was cut");
        }
        failure.into_error()
    }

    /// Nobody wants the rest of the answer: the program that makes it comes to its end all the same, within limits.
    pub(super) fn let_run(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (running, next) = (self.running.take(), self.next.take());
        let mut rest = Self { running, first: Bytes::new(), next, to_flush: false, is_wanted: false };
        runtime.spawn(async move {
            let Some((exchange, _)) = &rest.running else { return };
            let (time, mut left) = (exchange.request.config.drain_timeout, exchange.request.config.drain_len);
            let drained = async {
                while let Some(part) = std::future::poll_fn(|cx| rest.poll_part(cx)).await {
                    match part {
                        Ok(data) if data.len() as u64 <= left => left -= data.len() as u64,
                        _ => break,
                    }
                }
            };
            // What is not at its end by then is aborted with the drop.
            let _ = tokio::time::timeout(time, drained).await;
        });
    }

    /// The next piece of the body; `None` at the end.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        let Some((exchange, _)) = &mut self.running else { return Poll::Ready(None) };
        let part = match self.next.take() {
            Some(next) => next,
            None => std::task::ready!(exchange.poll_part(cx)),
        };
        Poll::Ready(match part {
            Ok(Part::Stdout(data)) => Some(Ok(data)),
            Ok(Part::End { application_status, protocol_status }) => {
                self.end(application_status, protocol_status);
                None
            }
            Err(cause) => Some(Err(self.cut(cause))),
        })
    }
}

impl<C: Connect> Frames for Answer<C> {
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = Pin::into_inner(self);
        match this.poll_part(cx) {
            Poll::Ready(part) => {
                this.to_flush = true;
                Poll::Ready(part.map(|part| part.map(Frame::Data)))
            }
            // Nothing more is here, so that what was given out is not to wait for it.
            Poll::Pending if std::mem::take(&mut this.to_flush) => Poll::Ready(Some(Ok(Frame::Flush))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let this = Pin::into_inner(self);
        match &this.running {
            Some((exchange, _)) if !exchange.request.environ.cancellation().is_cancelled() => this.let_run(),
            // The client has left: nothing of this is worth going on with.
            _ => this.running = None,
        }
        Poll::Ready(())
    }
}

/// It is never pinned in place.
impl<C: Connect> Unpin for Answer<C> {}
