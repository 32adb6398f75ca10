//! `--client fastcgi-client`: the same request by the crate of that name, which shares no code with this one, so that a server's fault can be
//! told from a client's. docs/fastcgi-client.md lists how it differs.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use fastcgi_client::response::{Content, ResponseStream};
use fastcgi_client::{Client, ClientError, Params};
use futures_core::Stream;
use gatespan::protocol::fastcgi::Role;
use gatespan::upstream::fastcgi::Socket;
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout_at};

use super::Request;
use super::body::{Body, Readable};
use super::fastcgi::{Answer, deadline, timed_out};
use super::outcome::{Failure, Kind, Outcome};
use super::output::Output;
use super::watched::{Watch, Watched};

/// What the client's own task gives out: pieces of both streams, then its end.
type Pieces = mpsc::Receiver<Result<Content, ClientError>>;

/// How many pieces wait for the output; the client waits when they are that many.
const PIECES: usize = 4;

pub(super) async fn exchange(
    request: &Request<'_>,
    stream: Watched<Socket>,
    watch: &Arc<Watch>,
    outcome: &mut Outcome,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let times = &request.arguments.times;
    let params = params(&request.message.variables)?;
    let body = request.message.body.clone().unwrap_or_default();
    let panics = Panics::catch();
    let (sender, mut pieces): (_, Pieces) = mpsc::channel(PIECES);
    // In a task of its own: a panic of it is that task's end.
    let mut client = OnDrop(tokio::spawn(run(stream, params, body, sender)));
    let mut answer = Answer::default();
    let mut waiting_since = Instant::now();
    let mut failed = None;
    loop {
        let limit = if answer.has_head() { times.read_timeout } else { times.head_timeout };
        // A panic drops the sender.
        let piece = timeout_at(deadline(waiting_since, limit), pieces.recv());
        match piece.await {
            Ok(Some(Ok(Content::Stdout(data)))) => answer.stdout(data, outcome, output).await?,
            Ok(Some(Ok(Content::Stderr(data)))) => request.console.stderr(&data),
            Ok(Some(Err(error))) => failed = Some(error),
            Ok(None) => break,
            Err(_) => return Err(timed_out(limit, watch.received(), answer.has_head())),
        }
        if answer.has_head() {
            waiting_since = Instant::now();
        }
    }
    if let Err(error) = (&mut client.0).await {
        return Err(panicked(error, &panics));
    }
    match failed {
        None => answer.finish(Role::Responder, outcome, output),
        Some(error @ ClientError::EndRequestOverloaded { .. }) => {
            Err(Failure::new(Kind::Overloaded, format!("fastcgi-client: {error}")))
        }
        Some(error) => Err(Failure::protocol(format_args!("fastcgi-client: {error}"))),
    }
}

async fn run(
    stream: Watched<Socket>,
    params: Params<'static>,
    body: Body,
    pieces: mpsc::Sender<Result<Content, ClientError>>,
) {
    let client = Client::new_tokio(stream);
    let request = fastcgi_client::Request::new_tokio(params, Readable::from(body.reader()));
    let mut answer: ResponseStream<_> = match client.execute_once_stream(request).await {
        Ok(answer) => answer,
        Err(error) => return drop(pieces.send(Err(error)).await),
    };
    while let Some(piece) = poll_fn(|cx| Pin::new(&mut answer).poll_next(cx)).await {
        let is_last = piece.is_err();
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// It takes text only, and each name once: of one that is repeated the values are joined as HTTP joins them.
fn params(variables: &[(Vec<u8>, Vec<u8>)]) -> Result<Params<'static>, Failure> {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec());
        text.map_err(|_| {
            let shown = bytes.escape_ascii();
            Failure::local(format!("fastcgi-client sends only text, and \"{shown}\" is not UTF-8"))
        })
    };
    // Nothing of its own: it would say who it is.
    let mut params = Params::default();
    params.clear();
    for (name, value) in variables {
        let (name, value) = (text(name)?, text(value)?);
        let separator = if name == "HTTP_COOKIE" { "; " } else { ", " };
        match params.get_mut(name.as_str()).filter(|_| name.starts_with("HTTP_")) {
            Some(before) => *before = format!("{before}{separator}{value}").into(),
            None => drop(params.insert(name.into(), value.into())),
        }
    }
    Ok(params)
}

/// The client is ended with the request, whatever it waits for.
struct OnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for OnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn panicked(error: JoinError, panics: &Panics) -> Failure {
    let said = panics.last().unwrap_or_else(|| error.to_string());
    Failure::protocol(format_args!(
        "fastcgi-client panicked: {said}. That is the client's fault, whatever the server sent; without --client see what that was"
    ))
}

/// What panics say, kept instead of being printed. Only ever one request is sent by this process, so nobody else's are missed.
struct Panics(Arc<Mutex<Option<String>>>);

impl Panics {
    fn catch() -> Self {
        let said = Arc::new(Mutex::new(None));
        let kept = said.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("a value that is no text");
            let place = panic.location().map(|place| {
                let file = place.file().rsplit('/').next().unwrap_or_default();
                format!(" ({file}:{})", place.line())
            });
            let text = format!("{text}{}", place.unwrap_or_default());
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }));
        Self(said)
    }

    fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        drop(std::panic::take_hook());
    }
}
