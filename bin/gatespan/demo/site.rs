//! The demo's site: the page that compares, and the application itself below one path for each gateway.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use gatespan::application::{AnyApplication, Input, InputError, Source, driver};
use gatespan::{Application, Body, Environ, Error, StartResponse};
use tokio::sync::mpsc;

use super::app::{DemoApplication, MAX_FORM_LEN};
use super::cgi_probe::CgiProbe;
use super::fastcgi_probe::FastCgiProbe;
use super::page::{self, Answer, Seen, Told};

/// The longest answer that is shown on the page, in bytes.
const MAX_ANSWER_LEN: usize = 256 * 1024;

/// How many pieces of an upload wait for one gateway before the others wait for it too.
const PIECES: usize = 4;

/// What listens for the browser: it hands requests on unchanged or asks all three gateways and shows what they say.
pub(crate) struct Site {
    address: String,
    ways: [Way; 3],
}

/// One way to the application.
struct Way {
    label: &'static str,
    prefix: &'static str,
    /// In words, for the page.
    how: String,
    application: AnyApplication,
}

impl Site {
    /// The site at an address. The probes come with what they are connected to, in words.
    pub(crate) fn new(
        address: String,
        application: Arc<DemoApplication>,
        (fastcgi, socket): (FastCgiProbe, String),
        (cgi, program): (CgiProbe, String),
    ) -> Self {
        let way = |label, prefix, how, application| Way { label, prefix, how, application };
        Self {
            ways: [
                way("HTTP", "/http", format!("the server at {address} calls it"), AnyApplication::new(application)),
                way("FastCGI", "/fastcgi", format!("over the socket {socket}"), AnyApplication::new(fastcgi)),
                way("CGI", "/cgi", format!("a new process of {program} for each request"), AnyApplication::new(cgi)),
            ],
            address,
        }
    }

    fn way(&self, path: &[u8]) -> Option<&Way> {
        self.ways.iter().find(|way| {
            path.strip_prefix(way.prefix.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        })
    }
}

impl Application for Site {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        if let Some(way) = self.way(environ.path_info()) {
            let rest = environ.path_info()[way.prefix.len()..].to_vec();
            return way.application.call(way.mounted(environ, &rest)?, start_response).await;
        }
        let html = match (environ.method(), environ.path_info()) {
            (b"GET" | b"HEAD", b"/") => self.comparison(&environ).await?,
            (b"POST", b"/form") => self.form(environ).await?,
            (b"POST", b"/upload") => self.upload(environ).await?,
            // Whoever opens the answer's address again.
            (_, b"/form" | b"/upload") => {
                start_response.start("303 See Other", [("Location", "/")])?;
                return Ok(Body::empty());
            }
            (_, b"/") => {
                start_response.start("405 Method Not Allowed", [("Allow", "GET, HEAD")])?;
                return Ok(Body::empty());
            }
            _ => {
                let missing = driver::error_page(404, environ.request_id(), environ.method() == b"HEAD");
                return missing.pass_on(&start_response);
            }
        };
        start_response.start(
            "200 OK",
            [
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Security-Policy", &page::content_security_policy()),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ],
        )?;
        Ok(html.into())
    }
}

impl Site {
    async fn comparison(&self, environ: &Environ) -> Result<String, Error> {
        let requests = |path: &'static str| {
            self.ways.each_ref().map(|way| {
                let environ = way.asked(environ, "GET", path);
                async move { way.ask(environ?).await }
            })
        };
        let [greetings, environs] = [requests("/"), requests("/environ")];
        let (greetings, environs) = tokio::try_join!(three(greetings), three(environs))?;
        let told = environs.map(|seen| seen.answer.and_then(|answer| tell(&answer.body)));
        Ok(page::comparison(&self.address, &greetings, &told))
    }

    async fn form(&self, mut environ: Environ) -> Result<String, Error> {
        let body = environ.input().read_to_end(MAX_FORM_LEN).await?;
        let seen = three(self.ways.each_ref().map(|way| {
            let environ = way.asked(&environ, "POST", "/form");
            let input = Input::from_bytes(body.clone());
            async move { way.ask(environ?.with_input(input)).await }
        }));
        Ok(page::form(&seen.await?))
    }

    /// Sends one body through all three gateways while it arrives. The slowest sets the pace, so that only a few pieces are in memory.
    async fn upload(&self, mut environ: Environ) -> Result<String, Error> {
        let mut input = environ.take_input();
        let length = input.remaining();
        let mut senders = Vec::new();
        let seen = three(self.ways.each_ref().map(|way| {
            let environ = way.asked(&environ, "POST", "/upload");
            let (sender, pieces) = mpsc::channel(PIECES);
            senders.push(sender);
            let input = Input::from_source(Pieces(pieces), length);
            async move { way.ask(environ?.with_input(input)).await }
        }));
        let feed = async {
            loop {
                let piece = input.chunk().await?;
                let Some(piece) = piece else { break };
                for sender in &senders {
                    // One that answers without reading to the end does not hold up the others.
                    let _ = sender.send(piece.clone()).await;
                }
            }
            // The end of the channels is the end of the body.
            senders.clear();
            Ok::<_, Error>(())
        };
        let (seen, ()) = tokio::try_join!(seen, feed)?;
        Ok(page::upload(&seen))
    }
}

impl Way {
    /// The request as the application is to see it here: the first part of its path is where the application is mounted.
    fn mounted(&self, mut environ: Environ, path: &[u8]) -> Result<Environ, Error> {
        environ.set("SCRIPT_NAME", self.prefix)?;
        environ.set("PATH_INFO", path)?;
        Ok(environ)
    }

    /// A request of the page's own, made of the one that the page answers.
    fn asked(&self, environ: &Environ, method: &str, path: &str) -> Result<Environ, Error> {
        let mut asked = self.mounted(environ.without_input(), path.as_bytes())?;
        let mut uri = [self.prefix, path].concat().into_bytes();
        if !environ.query_string().is_empty() {
            uri.push(b'?');
            uri.extend_from_slice(environ.query_string());
        }
        asked.set("REQUEST_METHOD", method)?;
        asked.set("REQUEST_URI", uri)?;
        Ok(asked)
    }

    async fn ask(&self, environ: Environ) -> Result<Seen, Error> {
        let started = Instant::now();
        let answer = self.answer(environ).await.map_err(|error| error.to_string());
        Ok(Seen { label: self.label, prefix: self.prefix, how: self.how.clone(), took: started.elapsed(), answer })
    }

    async fn answer(&self, environ: Environ) -> Result<Answer, Error> {
        let mut response = driver::call(self.application.clone(), environ).await?;
        let body = response.body.read_to_end(MAX_ANSWER_LEN).await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer {
            status: response.head.status.to_string(),
            headers: response.head.headers.iter().map(|(name, value)| (text(name), text(value))).collect(),
            body: text(&body),
        })
    }
}

/// Waits for all three at once.
async fn three<T>(futures: [impl Future<Output = Result<T, Error>>; 3]) -> Result<[T; 3], Error> {
    let [first, second, third] = futures;
    let (first, second, third) = tokio::try_join!(first, second, third)?;
    Ok([first, second, third])
}

/// Reads what the application says about its environ.
fn tell(json: &str) -> Result<Told, String> {
    let told: serde_json::Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let pairs = |key: &str| {
        let pairs = told[key].as_object().into_iter().flatten();
        pairs.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.into()))).collect()
    };
    Ok(Told { variables: pairs("variables"), interface: pairs("interface") })
}

/// The body of an upload on its way to one gateway.
struct Pieces(mpsc::Receiver<Bytes>);

impl Source for Pieces {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}
