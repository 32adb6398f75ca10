//! Requests as lines on standard output: one for each that is over, for people or as JSON, and what was found.

use std::io::{self, BufWriter, Write};
use std::sync::mpsc::Receiver;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use super::following::{Following, Found, News, Request, clause, duration, size, text};
use super::recorder::Watched;

/// Which lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    Text,
    Json,
}

/// Writes lines until nothing more comes, or nobody reads them. The tap goes on either way.
pub(super) fn write(watched: &Receiver<Watched>, lines: Lines) {
    let mut output = BufWriter::new(io::stdout().lock());
    let mut following = Following::new();
    let mut news = Vec::new();
    for watched in watched.iter() {
        following.receive(&watched, &mut news);
        let written = news.drain(..).try_for_each(|news| match lines {
            Lines::Text => write_text(&mut output, &news),
            Lines::Json => writeln!(output, "{}", object(&news)),
        });
        if let Err(error) = written.and_then(|()| output.flush()) {
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::error!("standard output can't be written, and the tap goes on without it: {error}");
            }
            // What is still in the buffer has nowhere to go.
            let _ = output.into_parts();
            return;
        }
    }
}

fn write_text(out: &mut impl Write, news: &News) -> io::Result<()> {
    match news {
        News::Over(request) => {
            writeln!(out, "{}", line(request))?;
            request.findings.iter().try_for_each(|found| writeln!(out, "    {}: {}", clause(found), found.text))
        }
        News::Found { connection, time, found } => {
            writeln!(out, "{} connection {connection}: {}: {}", moment(*time), clause(found), found.text)
        }
        News::Missed => writeln!(out, "more passed than could be followed: requests are missing here"),
    }
}

fn line(request: &Request) -> String {
    let (method, uri) = request.target();
    let parts = request.parts(0);
    let mut line = format!(
        "{} {:>4} {} {} {} in, {} out, {} (connect {}, params {}, first byte {}, last byte {}) #{} connection {}",
        moment(request.times.begun),
        request.outcome(),
        if method.is_empty() { "-" } else { &method },
        if uri.is_empty() { "-" } else { &uri },
        size(request.stdin.len),
        size(request.body.len),
        duration(parts.total()),
        duration(parts.connect),
        duration(parts.params),
        duration(parts.wait),
        duration(parts.answer),
        request.number,
        request.connection,
    );
    if request.stderr.len > 0 {
        line.push_str(&format!(", {} of errors", size(request.stderr.len)));
    }
    if let Some(why) = &request.why {
        line.push_str(&format!(", cut: {}", text(why.as_bytes())));
    }
    line
}

/// A time of day, UTC.
pub(super) fn moment(nanoseconds: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(format_description!("[hour]:[minute]:[second].[subsecond digits:3]")).unwrap_or_default()
}

fn date(nanoseconds: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    time.format(format).unwrap_or_default()
}

fn found_object(found: &Found) -> Value {
    json!({ "clause": clause(found), "text": found.text })
}

fn object(news: &News) -> Value {
    match news {
        News::Over(request) => request_object(request),
        News::Found { connection, time, found } => {
            json!({ "time": date(*time), "connection": connection.0, "finding": found_object(found) })
        }
        News::Missed => json!({ "missed": true }),
    }
}

fn request_object(request: &Request) -> Value {
    let (method, uri) = request.target();
    let parts = request.parts(0);
    let milliseconds = |nanoseconds: u64| (nanoseconds / 1000) as f64 / 1e3;
    json!({
        "time": date(request.times.begun),
        "request": request.number,
        "connection": request.connection.0,
        "id": request.id.0,
        "from": *request.from,
        "to": *request.to,
        "method": method,
        "uri": uri,
        "status": request.status,
        "application_status": request.end.map(|end| end.application_status),
        "protocol_status": request.end.map(|end| gatespan::recording::status_name(end.protocol_status)),
        "complete": request.is_complete(),
        "aborted": request.is_aborted,
        "cut": request.why,
        "stdin_bytes": request.stdin.len,
        "body_bytes": request.body.len,
        "stderr_bytes": request.stderr.len,
        "connect_ms": milliseconds(parts.connect),
        "params_ms": milliseconds(parts.params),
        "first_byte_ms": milliseconds(parts.wait),
        "last_byte_ms": milliseconds(parts.answer),
        "total_ms": milliseconds(parts.total()),
        "findings": request.findings.iter().map(found_object).collect::<Vec<_>>(),
    })
}
