//! A connection on which another protocol is spoken: what the client sends is the application's input, what the application gives is the
//! client's, each by itself and as it comes.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Config;
use super::connection::{ConnectionError, discard};
use super::watched::Watched;
use crate::application::Upgrade;
use crate::application::message::HttpBody;

/// Where a request leaves what its connection is to go on with, once hyper is through with it.
#[derive(Default)]
pub(super) struct Switch(Mutex<Option<Switched>>);

/// The rest of an exchange whose answer is 101.
pub(super) struct Switched {
    upgrade: Upgrade,
    body: HttpBody,
}

impl Switch {
    pub(super) fn take(&self) -> Option<Switched> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Switched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Offers the connection to the application, where the client asks for another protocol and hyper could let go of it.
pub(super) fn offer<B>(request: &mut Request<B>) -> Option<Upgrade> {
    if request.version() != Version::HTTP_11 || !request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    // The connection is handed over by us, and not by hyper.
    request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>()?;
    let upgrade = Upgrade::new();
    request.extensions_mut().insert(upgrade.clone());
    Some(upgrade)
}

/// Takes the body out of an answer that switches: hyper sends its head and lets go of the connection.
pub(super) fn divert(response: Response<HttpBody>, upgrade: Upgrade, switch: &Switch) -> Response<HttpBody> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    let (head, body) = response.into_parts();
    *switch.lock() = Some(Switched { upgrade, body });
    Response::from_parts(head, HttpBody::default())
}

/// Carries both directions to their ends, the server's, or that of the time for stopping. `read` is what hyper has read beyond the request.
pub(super) async fn carry<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut stream: Watched<S>,
    read: Bytes,
    switched: Switched,
    config: &Config,
    stop: &CancellationToken,
) -> Result<(), ConnectionError> {
    // From here on the end of what the client sends is no more than that.
    stream.let_leave();
    let Switched { upgrade, mut body } = switched;
    let client = Shared(Arc::new(Mutex::new(stream)));
    let (unread, mut taken, over) = (client.clone(), client.clone(), CancellationToken::new());
    upgrade.hand_over(Reader { read, stream: unread, _over: over.clone().drop_guard() });
    let mut carried = pin!(async {
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            // Why it failed is in the request's log already.
            let frame = frame.map_err(io::Error::other)?;
            if let Ok(data) = frame.into_data() {
                taken.write_all(&data).await?;
                taken.flush().await?;
            }
        }
        taken.shutdown().await?;
        // The application may still want what comes.
        over.cancelled().await;
        Ok(())
    });
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(config.shutdown_timeout).await;
    };
    let ended = tokio::select! {
        ended = &mut carried => ended,
        () = stopped => return Err(ConnectionError::Stop { after: config.shutdown_timeout }),
    };
    match ended {
        Ok(()) => {
            discard(client, config).await;
            Ok(())
        }
        Err(error) => Err(ConnectionError::Switched(error)),
    }
}

/// What the client sends, with what was read of it before. Dropping it tells that nobody wants more.
struct Reader<S> {
    read: Bytes,
    stream: Shared<S>,
    _over: DropGuard,
}

impl<S: AsyncRead + Unpin> AsyncRead for Reader<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let len = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read[..len]);
            self.read.advance(len);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

/// A stream with two owners, one of which reads and one of which writes. It is locked for as long as a call takes that never waits.
struct Shared<S>(Arc<Mutex<S>>);

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Shared<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Shared<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}
