//! What the demo's two probes have in common: a CGI answer that comes in pieces from elsewhere is passed on as an application's own.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use gatespan::application::{Frame, Frames, Headers, Status};
use gatespan::protocol::cgi::{Limits, ResponseHead, ResponseHeadDecoder};
use gatespan::{Body, Error, StartResponse};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// How many pieces of an answer wait for its reader before the exchange is held up.
const PIECES: usize = 4;

/// Runs an exchange in a task of its own, and passes on the answer that it receives. Dropping the body ends the task.
pub(crate) async fn relay<E>(start_response: &StartResponse, exchange: impl FnOnce(Answer) -> E) -> Result<Body, Error>
where
    E: Future<Output = (Answer, Result<(), Error>)> + Send + 'static,
{
    let (head_sender, head) = oneshot::channel();
    let (pieces_sender, pieces) = mpsc::channel(PIECES);
    let exchange = exchange(Answer {
        decoder: ResponseHeadDecoder::new(Limits::default()),
        received: BytesMut::new(),
        head: Some(head_sender),
        pieces: pieces_sender,
    });
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        let (answer, ended) = exchange.await;
        answer.end(ended).await;
    }));
    let head: ResponseHead =
        head.await.map_err(|_| Error::new("the exchange ended without a word").with_status(502))??;
    let (code, reason) = head.status_or_default();
    let status = Status::with_reason(code, reason)?;
    start_response.start(status, Headers::from(head.headers.clone()))?;
    Ok(Body::frames(Relayed { pieces, flushed: false, _task: task }))
}

/// The answer of the other side as it comes in: first its head, then its body.
pub(crate) struct Answer {
    decoder: ResponseHeadDecoder,
    /// What has come of the head.
    received: BytesMut,
    /// Where the head goes; `None` once it went.
    head: Option<oneshot::Sender<Result<ResponseHead, Error>>>,
    /// Full, it makes the exchange wait for the reader of the body, and the other side with it.
    pieces: mpsc::Sender<Result<Bytes, Error>>,
}

impl Answer {
    /// Takes the next bytes. An error means that no more are of use.
    pub(crate) async fn receive(&mut self, data: Bytes) -> Result<(), Error> {
        if self.head.is_none() {
            return self.pass_on(data).await;
        }
        self.received.extend_from_slice(&data);
        let Some(head) = self.decoder.decode(&mut self.received).map_err(bad_gateway)? else { return Ok(()) };
        if let Some(sender) = self.head.take() {
            // Nobody waits for it any more: the task is about to be ended.
            let _ = sender.send(Ok(head));
        }
        let rest = self.received.split().freeze();
        self.pass_on(rest).await
    }

    async fn pass_on(&mut self, data: Bytes) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        self.pieces.send(Ok(data)).await.map_err(|_| Error::new("nobody reads the answer any more"))
    }

    /// Says how the exchange ended, where that is not simply the end of the body.
    async fn end(mut self, ended: Result<(), Error>) {
        match (self.head.take(), ended) {
            (Some(head), Err(error)) => drop(head.send(Err(error))),
            (Some(head), Ok(())) => drop(head.send(Err(bad_gateway(self.decoder.ended(&self.received))))),
            (None, Err(error)) => drop(self.pieces.send(Err(error)).await),
            (None, Ok(())) => {}
        }
    }
}

/// The other side did something wrong or is not there.
pub(crate) fn bad_gateway(error: impl Into<Error>) -> Error {
    error.into().with_status(502)
}

/// The body of an answer, as it comes.
struct Relayed {
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
    flushed: bool,
    /// Ends the exchange with the body.
    _task: AbortOnDropHandle<()>,
}

impl Frames for Relayed {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        // The head does not wait for a body that may take its time.
        if !std::mem::replace(&mut self.flushed, true) {
            return Poll::Ready(Some(Ok(Frame::Flush)));
        }
        self.pieces.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::Data)))
    }
}
