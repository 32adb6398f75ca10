//! One connection: which version it speaks, its requests, and how it ends.

use std::any::Any;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::clock::{Activity, Clock, Waiting};
use super::switched::{self, Switch};
use super::watched::Watched;
use super::{Config, Gateway};
use crate::application::message::{self, Answering, Call, HttpBody, RequestError};
use crate::application::{Application, Peer, Server, Upgrade};

/// With what an HTTP/2 connection begins (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves one connection to its end: until the client closes it, is idle for too long or breaks a limit, or `stop` is cancelled
/// and the requests that run are finished.
///
/// `local` is the address that the client connected to, where there is one. Cancel-safe in that dropping it ends the connection:
/// the tokens of its requests are cancelled, then they are dropped.
///
/// # Errors
///
/// When it ended in any other way than between two requests.
pub async fn serve_connection<S, A>(
    stream: S,
    peer: Peer,
    local: Option<SocketAddr>,
    gateway: &Arc<Gateway<A>>,
    stop: &CancellationToken,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Application,
{
    let config = &gateway.config;
    let activity = Arc::new(Activity::new());
    let mut clock = Clock::new(config.head_timeout, config.idle_timeout);
    let mut stream = Watched::new(stream, activity.clone(), config.write_timeout);
    // Nobody who stops wants to know which version a connection would have had.
    let begun = stop.run_until_cancelled(async {
        tokio::select! {
            begun = stream.begins_with(PREFACE) => Ok(begun),
            waiting = poll_fn(|cx| clock.poll(cx, &activity)) => Err(waiting),
        }
    });
    let is_http2 = match begun.await {
        Some(Ok(begun)) => begun.map_err(ConnectionError::Stream)?,
        None | Some(Err(Waiting::FirstByte | Waiting::Request)) => return Ok(()),
        Some(Err(Waiting::Head)) => {
            say_timeout(stream.into_inner(), config).await;
            return Err(ConnectionError::Head { after: config.head_timeout });
        }
    };
    let service = Requests::new(gateway.clone(), activity.clone(), peer, local);
    match is_http2 {
        false => serve_http1(stream, service, clock, &activity, config, stop).await,
        true => {
            clock.without_heads();
            serve_http2(stream, service, clock, &activity, config, stop).await
        }
    }
}

/// Why a connection ended otherwise than between two requests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The client did not finish the head of a request; it was told with 408.
    #[error("expected the rest of a request's head within {after:?}")]
    Head {
        /// [`Config::head_timeout`].
        after: Duration,
    },
    /// The client sent something that is no HTTP; it was told with 400, 414 or 431 where it can be.
    #[error("expected a request of HTTP")]
    Request(#[source] hyper::Error),
    /// The client left, or took nothing for too long, before it had its answer.
    #[error("the client left before it had its answer")]
    Left(#[source] hyper::Error),
    /// The application failed after the head of its response, which was therefore cut.
    #[error("a response was cut")]
    Cut(#[source] hyper::Error),
    /// The stream failed before the first request.
    #[error("the connection failed before its first request")]
    Stream(#[source] io::Error),
    /// A connection on which another protocol is spoken was lost, or the application failed.
    #[error("a connection ended that had switched to another protocol")]
    Switched(#[source] io::Error),
    /// Requests still ran when the time for stopping was up.
    #[error("requests still ran {after:?} after the server was asked to stop")]
    Stop {
        /// [`Config::shutdown_timeout`].
        after: Duration,
    },
}

impl ConnectionError {
    fn of(error: hyper::Error) -> Self {
        match () {
            () if error.is_parse() => Self::Request(error),
            () if error.is_user() => Self::Cut(error),
            () => Self::Left(error),
        }
    }

    /// The line about it. That clients leave is no news, and a cut response has its line already.
    pub(super) fn log(&self, peer: &Peer) {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}")).unwrap_or_default();
        match self {
            Self::Left(_) | Self::Cut(_) | Self::Stream(_) | Self::Switched(_) => {
                tracing::debug!(?peer, "{self}{cause}")
            }
            Self::Head { .. } | Self::Request(_) => tracing::info!(?peer, "{self}{cause}"),
            Self::Stop { .. } => tracing::warn!(?peer, "{self}"),
        }
    }
}

/// What both versions of a connection can be asked for.
trait Drive: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

impl<S, A> Drive for http1::Connection<TokioIo<Watched<S>>, Requests<A>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Application,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, A> Drive for http2::Connection<TokioIo<Watched<S>>, Requests<A>, TokioExecutor>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Application,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// How driving a connection ended.
enum End {
    Over(hyper::Result<()>),
    /// Told to end between two requests, so that no answer can be lost.
    Idle,
    Head,
    Stop,
}

async fn drive(
    mut connection: Pin<&mut impl Drive>,
    mut clock: Clock,
    activity: &Activity,
    config: &Config,
    stop: &CancellationToken,
) -> End {
    let mut stopped = pin!(stop.cancelled());
    let mut finishing = None;
    poll_fn(|cx| {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            // How a client takes its leave of a connection that was being closed anyway is its own affair.
            let is_news = finishing.is_none() || activity.is_busy();
            return Poll::Ready(End::Over(result.or_else(|error| if is_news { Err(error) } else { Ok(()) })));
        }
        if finishing.is_none() {
            if stopped.as_mut().poll(cx).is_pending() {
                match ready!(clock.poll(cx, activity)) {
                    // Between requests there is nobody to tell.
                    Waiting::FirstByte | Waiting::Request => {}
                    Waiting::Head => return Poll::Ready(End::Head),
                }
            }
            finishing = Some(Box::pin(tokio::time::sleep(config.shutdown_timeout)));
            let was_idle = !activity.is_busy();
            connection.as_mut().finish();
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(if was_idle { End::Idle } else { End::Over(result) });
            }
        }
        if let Some(limit) = &mut finishing {
            ready!(limit.as_mut().poll(cx));
        }
        Poll::Ready(End::Stop)
    })
    .await
}

async fn serve_http1<S, A>(
    mut stream: Watched<S>,
    service: Requests<A>,
    clock: Clock,
    activity: &Activity,
    config: &Config,
    stop: &CancellationToken,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Application,
{
    if !config.finish_half_closed {
        stream.notice_leaving();
    }
    let switch = service.switch.clone();
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The clock has a limit for it, and one for idle connections, which hyper does not tell apart.
        .header_read_timeout(None)
        .half_close(config.finish_half_closed)
        .max_headers(config.max_headers)
        .max_header_size(config.max_head_len)
        // hyper has one limit for what it holds of either direction, of 8 KiB at least.
        .max_buf_size(config.output_window.max(config.max_head_len).max(8 << 10))
        .auto_date_header(config.date)
        .serve_connection(TokioIo::new(stream), service);
    let end = drive(Pin::new(&mut connection), clock, activity, config, stop).await;
    // This drops the requests that run, which cancels them.
    let parts = connection.into_parts();
    let stream = parts.io.into_inner();
    if let (End::Over(Ok(())), Some(switched)) = (&end, switch.take()) {
        return switched::carry(stream, parts.read_buf, switched, config, stop).await;
    }
    let stream = stream.into_inner();
    match end {
        End::Idle => Ok(()),
        End::Over(Ok(())) => {
            discard(stream, config).await;
            Ok(())
        }
        End::Over(Err(error)) => {
            let error = ConnectionError::of(error);
            if let ConnectionError::Request(_) = &error {
                discard(stream, config).await;
            }
            Err(error)
        }
        End::Head => {
            say_timeout(stream, config).await;
            Err(ConnectionError::Head { after: config.head_timeout })
        }
        End::Stop => Err(ConnectionError::Stop { after: config.shutdown_timeout }),
    }
}

async fn serve_http2<S, A>(
    stream: Watched<S>,
    service: Requests<A>,
    clock: Clock,
    activity: &Activity,
    config: &Config,
    stop: &CancellationToken,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Application,
{
    let mut connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(u32::try_from(config.max_head_len).unwrap_or(u32::MAX))
        .max_send_buf_size(config.output_window)
        .auto_date_header(config.date)
        .serve_connection(TokioIo::new(stream), service);
    match drive(Pin::new(&mut connection), clock, activity, config, stop).await {
        End::Over(result) => result.map_err(ConnectionError::of),
        End::Idle => Ok(()),
        // The clock does not ring for heads here.
        End::Head | End::Stop => Err(ConnectionError::Stop { after: config.shutdown_timeout }),
    }
}

/// The answer to a client that did not finish its request's head (RFC 9110 15.5.9).
async fn say_timeout<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, config: &Config) {
    const ANSWER: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    if let Ok(Ok(())) = tokio::time::timeout(config.linger_timeout, stream.write_all(ANSWER)).await {
        discard(stream, config).await;
    }
}

/// Shuts a connection down for writing and reads what the client still sends: closing it with bytes unread is a reset, by which the
/// client may lose an answer that it has not read yet (RFC 9112 9.6).
pub(super) async fn discard<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, config: &Config) {
    let reading = async {
        // hyper has not done it for a request that asked for an upgrade.
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut buffer = vec![0; 16 << 10];
        let mut left = config.linger_len;
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read as u64),
            }
        }
    };
    let _ = tokio::time::timeout(config.linger_timeout, reading).await;
}

/// The requests of one connection, as hyper hands them over.
struct Requests<A> {
    gateway: Arc<Gateway<A>>,
    activity: Arc<Activity>,
    server: Arc<Server>,
    connection: message::Described,
    switch: Arc<Switch>,
    count: AtomicU32,
}

impl<A: Application> Requests<A> {
    fn new(gateway: Arc<Gateway<A>>, activity: Arc<Activity>, peer: Peer, local: Option<SocketAddr>) -> Self {
        let config = &gateway.config;
        let server = Server {
            gateway: "http",
            connection: gateway.connections.fetch_add(1, Ordering::Relaxed) + 1,
            peer: peer.clone(),
            multithread: true,
            multiprocess: config.multiprocess,
            run_once: false,
        };
        let connection = message::Connection {
            peer,
            local,
            https: config.https,
            software: config.server_software.clone(),
            script_name: config.script_name.clone().unwrap_or_default(),
            server_name: config.server_name.clone(),
            server_port: config.server_port,
        };
        Self {
            gateway,
            activity,
            server: Arc::new(server),
            connection: connection.into(),
            switch: Arc::default(),
            count: AtomicU32::new(0),
        }
    }
}

impl<A: Application> hyper::service::Service<Request<Incoming>> for Requests<A> {
    type Response = Response<HttpBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<Incoming>) -> Answer {
        let upgrade = switched::offer(&mut request).map(|upgrade| Box::new((upgrade, self.switch.clone())));
        let config = &self.gateway.config;
        let (lease, running) = Lease::new(&self.activity, &self.gateway.running);
        let call = Call {
            server: self.server.clone(),
            number: self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            errors: config.errors.clone(),
            max_body: config.max_body,
            body_timeout: Some(config.body_timeout),
            closing: self.gateway.closing.clone(),
            lease: Some(Box::new(lease) as Box<dyn Any + Send>),
        };
        // RFC 9112 3.2: HTTP/1.1 names its host, whatever it is.
        let is_hostless = request.version() == Version::HTTP_11 && !request.headers().contains_key(header::HOST);
        let answering = if running > config.max_requests {
            let why = format_args!("{} run already", config.max_requests);
            call.page(503, request.method(), &[("Retry-After", "1")], &why)
        } else if is_hostless {
            call.refuse(&request.into_parts().0, &RequestError::HostCount(0))
        } else {
            call.begin(self.gateway.application.clone(), request, &self.connection)
        };
        let server = config.server.then(|| header::HeaderValue::from_str(&config.server_software).ok()).flatten();
        Answer { answering, server, upgrade }
    }
}

/// One request on its way to the head of its response.
struct Answer {
    answering: Answering,
    server: Option<header::HeaderValue>,
    /// Where the client asks for another protocol. Boxed, since few do.
    upgrade: Option<Box<(Upgrade, Arc<Switch>)>>,
}

impl Future for Answer {
    type Output = Result<Response<HttpBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = ready!(Pin::new(&mut self.answering).poll(cx))?;
        if let Some(server) = self.server.take() {
            response.headers_mut().entry(header::SERVER).or_insert(server);
        }
        Poll::Ready(Ok(match self.upgrade.take() {
            None => response,
            Some(upgrade) => switched::divert(response, upgrade.0, &upgrade.1),
        }))
    }
}

/// Held while a request runs.
struct Lease {
    activity: Arc<Activity>,
    running: Arc<AtomicUsize>,
}

impl Lease {
    /// And how many run now, with this one.
    fn new(activity: &Arc<Activity>, running: &Arc<AtomicUsize>) -> (Self, usize) {
        activity.request_began();
        let count = running.fetch_add(1, Ordering::AcqRel) + 1;
        (Self { activity: activity.clone(), running: running.clone() }, count)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
        self.activity.request_ended();
    }
}
