//! `--values`: what a FastCGI server says of itself (FastCGI 4.1). On a connection of its own, since many servers close it on that.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use gatespan::protocol::Pairs;
use gatespan::protocol::fastcgi::web_server_end::{Event, Settings};
use gatespan::protocol::fastcgi::{MAX_CONNS, MAX_REQS, MPXS_CONNS, WebServerEnd};
use gatespan::upstream::fastcgi::Socket;
use serde_json::{Map, Value};

use super::Request;
use super::console::harmless;
use super::fastcgi::{poll_read, poll_write};
use super::outcome::{Failure, Kind};
use super::output::print;
use super::watched::{Watch, Watched};

/// How long the answer is waited for unless --max-time says so: it takes no work.
const WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn ask(
    request: &Request<'_>,
    names: &[String],
    stream: Watched<Socket>,
    watch: &Arc<Watch>,
) -> Result<(), Failure> {
    let usual = [MAX_CONNS, MAX_REQS, MPXS_CONNS];
    let names: Vec<&str> = match names.is_empty() {
        true => usual.to_vec(),
        false => names.iter().map(String::as_str).collect(),
    };
    let mut end = WebServerEnd::new(Settings { max_values_count: 1024, ..Settings::default() });
    let asked = end.get_values(names.iter().copied());
    asked.map_err(|error| Failure::local(format!("these values can't be asked for: {error}")))?;
    let limit = request.arguments.times.max_time.unwrap_or(WITHIN);
    let answer = tokio::time::timeout(limit, answer(end, stream, watch));
    let values = answer.await.unwrap_or_else(|_| {
        let message = format!(
            "expected GET_VALUES_RESULT within {limit:?}, got none: many FastCGI servers do not answer GET_VALUES"
        );
        Err(Failure::new(Kind::TimedOut, message))
    })?;
    match request.arguments.output.json {
        true => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let object: Map<_, _> = values.iter().map(|(name, value)| (text(name), Value::from(text(value)))).collect();
            print(format!("{}\n", Value::from(object)).as_bytes())
        }
        false => {
            let lines: Vec<_> =
                values.iter().map(|(name, value)| format!("{}={}\n", harmless(name), harmless(value))).collect();
            print(lines.concat().as_bytes())
        }
    }
}

async fn answer(mut end: WebServerEnd, mut stream: Watched<Socket>, watch: &Arc<Watch>) -> Result<Pairs, Failure> {
    loop {
        let event = end.next_event().map_err(|error| {
            Failure::protocol(format_args!("expected FastCGI records, got something else: {error}"))
        })?;
        match event {
            Some(Event::Values(values)) => return Ok(values),
            Some(Event::UnknownType(_)) => {
                return Err(Failure::protocol(
                    "expected GET_VALUES_RESULT, got UNKNOWN_TYPE: the server knows no GET_VALUES",
                ));
            }
            Some(_) => continue,
            None => {}
        }
        let read = poll_fn(|cx| {
            while let Poll::Ready(written) = poll_write(&mut stream, &mut end, cx) {
                written?;
            }
            poll_read(&mut stream, end.receive_buffer(), cx)
        });
        let how = match read.await {
            Ok(1..) => continue,
            Ok(0) => String::new(),
            Err(error) => format!(" ({error})"),
        };
        return Err(Failure::protocol(format_args!(
            "expected GET_VALUES_RESULT, but the server closed the connection after {} bytes{how}: many FastCGI servers do \
             not answer GET_VALUES",
            watch.received()
        )));
    }
}
