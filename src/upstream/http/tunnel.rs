//! A connection that the client and the server speak WebSocket on: what either sends goes to the other, as it is.
//!
//! The way to the client is the answer's body; the way to the server is a task of its own, since neither may wait for the other. Each holds a block
//! at most. The end of one direction closes that half of the other's connection, and the rest goes on within the limit.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use http::Response;
use http::header;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::answer::fields;
use super::pool::{Connection, Place, Pool};
use super::request::{WEBSOCKET, remove_hop_by_hop};
use super::{Config, Failure, via};
use crate::application::{Body, Error, Frame, Frames, Input, StartResponse, Upgrade};

/// How much is read of the server at once, in bytes.
const BLOCK: usize = 16 << 10;

/// How long a client may pause with what it still sends when the server has ended.
const CLOSING: Duration = Duration::from_secs(10);

/// Hands the connections of both sides over to each other.
pub(super) async fn open(
    mut response: Response<Incoming>,
    upgrade: Option<Upgrade>,
    start_response: StartResponse,
    pool: &Arc<Pool>,
    (connection, place): (Connection, Place),
    config: &Config,
) -> Result<Body, Error> {
    let target = pool.target().to_owned();
    let agreed = response
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET));
    // A server may only switch to what it was asked for (RFC 9110 15.2.2).
    let Some(upgrade) = upgrade.filter(|_| agreed) else {
        return Err(Failure::Switched { target }.into_error());
    };
    let closed = |cause| Failure::Closed { target: target.clone(), cause }.into_error();
    let server = hyper::upgrade::on(&mut response).await.map_err(closed)?;
    // Nothing is left of it but the stream.
    drop(connection);
    let Some(input) = upgrade.accept(WEBSOCKET) else {
        return Err(Error::new("the client's connection was taken over before"));
    };
    let (mut parts, _) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::CONTENT_LENGTH);
    via::add(&mut parts.headers, via::version(parts.version), config);
    start_response.start(parts.status, fields(&parts.headers)).map_err(|error| error.with_status(502))?;
    let (from, to) = tokio::io::split(TokioIo::new(server));
    let (moved, over) = (Arc::new(Moved::now()), CancellationToken::new());
    let upload = Upload(tokio::spawn(send(input, to, moved.clone(), over.clone())));
    let timer = Box::pin(sleep_until(Instant::now()));
    let limit = config.tunnel_timeout;
    Ok(Body::frames(Tunnel {
        from,
        moved,
        limit,
        timer,
        over,
        upload: Some(upload),
        flushed: false,
        target,
        _place: place,
    }))
}

/// What the server sends, as the body of its answer.
struct Tunnel {
    from: ReadHalf<TokioIo<Upgraded>>,
    moved: Arc<Moved>,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// Cancelled when the server has ended.
    over: CancellationToken,
    /// There until the server has ended, and the rest of it is its own affair.
    upload: Option<Upload>,
    /// The head has gone out, or had its chance.
    flushed: bool,
    target: String,
    _place: Place,
}

impl Frames for Tunnel {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Error>>> {
        let this = &mut *self;
        if !std::mem::replace(&mut this.flushed, true) {
            return Poll::Ready(Some(Ok(Frame::Flush)));
        }
        // Room is there only while something is read, so that a silent connection holds none.
        let mut block = BytesMut::zeroed(BLOCK);
        let mut room = ReadBuf::new(&mut block);
        let read = match Pin::new(&mut this.from).poll_read(cx, &mut room) {
            Poll::Pending => {
                let idle = ready!(this.poll_idle(cx));
                return Poll::Ready(Some(Err(idle.into_error())));
            }
            Poll::Ready(Ok(())) => Ok(room.filled().len()),
            Poll::Ready(Err(cause)) => Err(cause),
        };
        Poll::Ready(match read {
            Ok(0) => {
                this.over.cancel();
                if let Some(upload) = this.upload.take() {
                    upload.let_finish();
                }
                None
            }
            Ok(len) => {
                this.moved.mark();
                block.truncate(len);
                Some(Ok(Frame::Data(block.freeze())))
            }
            Err(cause) => Some(Err(Failure::Tunnel { target: this.target.clone(), cause }.into_error())),
        })
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.upload = None;
        Poll::Ready(())
    }
}

impl Tunnel {
    /// Whether nothing has moved either way for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        loop {
            let Some(due) = self.moved.last().checked_add(self.limit) else { return Poll::Pending };
            if due <= Instant::now() {
                return Poll::Ready(Failure::TunnelIdle { target: self.target.clone(), after: self.limit });
            }
            if self.timer.deadline() != due {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}

/// What the client sends, to the server.
async fn send(mut input: Input, mut to: WriteHalf<TokioIo<Upgraded>>, moved: Arc<Moved>, over: CancellationToken) {
    loop {
        let too_late = async {
            over.cancelled().await;
            tokio::time::sleep(CLOSING).await;
        };
        let chunk = tokio::select! {
            chunk = input.chunk() => chunk,
            () = too_late => return,
        };
        let sent: io::Result<()> = match chunk {
            Ok(Some(chunk)) => to.write_all(&chunk).await,
            // The server may have something to say all the same.
            Ok(None) => return drop(to.shutdown().await),
            // A client that is gone hears nothing more; the server learns of it by the end, too.
            Err(_) => return drop(to.shutdown().await),
        };
        if sent.is_err() {
            return;
        }
        moved.mark();
    }
}

/// The task that sends to the server. Dropped, it is given up.
struct Upload(JoinHandle<()>);

impl Upload {
    fn let_finish(self) {
        std::mem::forget(self);
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// When something last moved, in either direction.
struct Moved(Mutex<Instant>);

impl Moved {
    fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn mark(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
