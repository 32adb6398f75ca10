//! One request: sent, sent again where that is harmless, and its answer's head waited for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::UPGRADE;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::{self, Lease};
use super::pool::{Connection, Pool};
use super::request::{self, Progress, RequestBody};
use super::{Config, Failure, tunnel};
use crate::application::{Body, Environ, Error, Input, StartResponse, Upgrade};

/// How long a GET and its like are looked at for a body whose length nobody has announced: behind FastCGI that there is none shows only by its
/// end. A body that begins later is sent in chunks all the same.
const LOOK: Duration = Duration::from_millis(100);

/// Forwards the request, and gives the answer's head to `start_response`.
pub(super) async fn forward(
    mut environ: Environ,
    start_response: StartResponse,
    config: &Config,
    pool: &Arc<Pool>,
    authority: &str,
) -> Result<Body, Error> {
    let deadline = config.timeout.map(|timeout| Instant::now() + timeout);
    let mut input = environ.take_input();
    let is_bodiless = Method::from_bytes(environ.method()).is_ok_and(|method| request::is_bodiless(&method));
    let first = match input.remaining() {
        None if is_bodiless => tokio::time::timeout(LOOK, input.chunk()).await.unwrap_or(Ok(None))?,
        _ => None,
    };
    let len = if first.is_some() { None } else { input.remaining() };
    let head = request::head(&environ, len, config, authority).map_err(Failure::into_error)?;
    let upgrade = environ.extensions().get::<Upgrade>().filter(|_| head.headers.contains_key(UPGRADE)).cloned();
    let busy = |failure: Failure| failure.into_error().with_retry_after(config.retry_after);
    let place = pool.place().await.map_err(busy)?;
    let exchange = Exchange { pool, config, deadline };
    let (response, connection, progress) = exchange.run(head, first, input).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return tunnel::open(response, upgrade, start_response, pool, (connection, place), config).await;
    }
    let lease = Lease::new(pool.clone(), connection, progress, place);
    answer::pass_on(response, start_response, lease, config, deadline)
}

struct Exchange<'a> {
    pool: &'a Arc<Pool>,
    config: &'a Config,
    deadline: Option<Instant>,
}

/// What a connection made of a request.
enum Sent {
    Answered(Response<Incoming>, Connection),
    /// Nothing of it went out: here it is again.
    Unsent(Box<http::Request<RequestBody>>, hyper::Error),
    /// Some of it did.
    Failed(hyper::Error),
}

impl Exchange<'_> {
    async fn run(
        &self,
        head: Parts,
        first: Option<Bytes>,
        input: Input,
    ) -> Result<(Response<Incoming>, Connection, Progress), Error> {
        let progress = Progress::new();
        // RFC 9110 9.2.2: only these may be sent again where it can't be known what the server made of them.
        let is_idempotent = matches!(
            head.method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
        );
        let is_repeatable = is_idempotent && first.is_none() && input.remaining() == Some(0);
        let kept = self.pool.kept().await;
        let copy = (is_repeatable && kept.is_some()).then(|| head.clone());
        let mut request = self.request(head, first, input, &progress);
        if let Some(connection) = kept {
            // RFC 9112 9.3.1: the server may have closed a kept connection just now. A new one tells what is true.
            request = match (self.send(connection, request, &progress).await?, copy) {
                (Sent::Answered(response, connection), _) => return Ok((response, connection, progress)),
                (Sent::Unsent(request, _), _) => *request,
                (Sent::Failed(error), Some(head)) if is_dead(&error) => {
                    self.request(head, None, Input::empty(), &progress)
                }
                (Sent::Failed(error), _) => return Err(self.failure(error, &progress)),
            };
        }
        let connection = self.within_deadline(self.pool.connect()).await?.map_err(Failure::into_error)?;
        match self.send(connection, request, &progress).await? {
            Sent::Answered(response, connection) => Ok((response, connection, progress)),
            Sent::Unsent(_, error) | Sent::Failed(error) => Err(self.failure(error, &progress)),
        }
    }

    fn request(
        &self,
        head: Parts,
        first: Option<Bytes>,
        input: Input,
        progress: &Progress,
    ) -> http::Request<RequestBody> {
        let expects = head.headers.contains_key(http::header::EXPECT);
        let mut body = RequestBody::new(first, input, progress.clone());
        let go_on = CancellationToken::new();
        if expects {
            body = body.expecting(go_on.clone(), self.config.expect_timeout);
        }
        let mut request = http::Request::from_parts(head, body);
        if expects {
            hyper::ext::on_informational(&mut request, move |interim| {
                if interim.status() == StatusCode::CONTINUE {
                    go_on.cancel();
                }
            });
        }
        request
    }

    /// Sends it and waits for the head of the answer, within the limits.
    async fn send(
        &self,
        mut connection: Connection,
        request: http::Request<RequestBody>,
        progress: &Progress,
    ) -> Result<Sent, Error> {
        let began = Instant::now();
        let mut sending = std::pin::pin!(connection.sender.try_send_request(request));
        let limit = self.config.head_timeout;
        loop {
            let head_deadline = progress.moved().max(began) + limit;
            let wake = self.deadline.map_or(head_deadline, |deadline| deadline.min(head_deadline));
            match tokio::time::timeout_at(wake, sending.as_mut()).await {
                Ok(Ok(response)) => return Ok(Sent::Answered(response, connection)),
                Ok(Err(error)) => return Ok(unsent(error)),
                Err(_) => {
                    self.check_deadline()?;
                    // The body may have moved in the meantime, or its client is waited for.
                    if progress.moved().max(began) + limit <= Instant::now() {
                        let failure = Failure::HeadTimeout { target: self.pool.target().into(), after: limit };
                        return Err(failure.into_error());
                    }
                }
            }
        }
    }

    async fn within_deadline<F: Future>(&self, step: F) -> Result<F::Output, Error> {
        match self.deadline {
            None => Ok(step.await),
            Some(deadline) => match tokio::time::timeout_at(deadline, step).await {
                Ok(output) => Ok(output),
                Err(_) => Err(self.timed_out()),
            },
        }
    }

    fn check_deadline(&self) -> Result<(), Error> {
        match self.deadline {
            Some(deadline) if deadline <= Instant::now() => Err(self.timed_out()),
            _ => Ok(()),
        }
    }

    fn timed_out(&self) -> Error {
        let after = self.config.timeout.unwrap_or_default();
        Failure::Timeout { target: self.pool.target().into(), after }.into_error()
    }

    fn failure(&self, cause: hyper::Error, progress: &Progress) -> Error {
        // What is the client's fault has its own status.
        if let Some(error) = progress.failed() {
            return error.into();
        }
        let target = self.pool.target().to_owned();
        match cause.is_parse() {
            true => Failure::Head { target, cause }.into_error(),
            false => Failure::Closed { target, cause }.into_error(),
        }
    }
}

fn unsent(error: TrySendError<http::Request<RequestBody>>) -> Sent {
    let mut error = error;
    match error.take_message() {
        Some(request) => Sent::Unsent(Box::new(request), error.into_error()),
        None => Sent::Failed(error.into_error()),
    }
}

/// Whether the connection ended instead of bringing an answer.
fn is_dead(error: &hyper::Error) -> bool {
    !error.is_parse() && !error.is_user()
}
