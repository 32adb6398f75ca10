//! The form `curl`: for each exchange the command line that makes its request again. It is written only.
//!
//! What curl would add by itself is taken back, so that what is sent is what was recorded. A body that a command line can hold is in it; any
//! other is fed to curl in base64.

use std::io::{self, Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::ExchangeWriter;
use super::json::plain_text;
use super::message::request;
use crate::recording::Exchange;

/// Writes command lines.
#[derive(Debug, Default)]
pub struct Writer(());

/// Up to how many bytes a body stands in the command line itself.
const MAX_INLINE: u64 = 16 * 1024;

impl ExchangeWriter for Writer {
    fn write(&mut self, exchange: &Exchange, out: &mut dyn Write) -> io::Result<Vec<String>> {
        let (request, notes) = request(exchange);
        let mut line = Vec::new();
        let inline = match exchange.stdin.len() <= MAX_INLINE {
            true => exchange.stdin.first(MAX_INLINE as usize)?,
            false => Vec::new(),
        };
        let is_inline = exchange.stdin.len() == inline.len() as u64 && plain_text(&inline).is_some();
        if !is_inline {
            line.extend(b"base64 -d <<'END' | ");
        }
        // What a URL has between brackets or as dots is meant as it stands.
        line.extend(b"curl --globoff --path-as-is");
        match &request.method[..] {
            b"GET" if !request.has_body => {}
            b"POST" if request.has_body => {}
            b"HEAD" if !request.has_body => line.extend(b" --head"),
            method => argument(b"--request", method, &mut line),
        }
        if request.is_http_1_0 {
            line.extend(b" --http1.0");
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        for (name, value) in &request.fields {
            names.push(name.to_ascii_lowercase());
            header(name, value, &mut line);
        }
        if let Some(content_type) = &request.content_type {
            header(b"Content-Type", content_type, &mut line);
        } else if request.has_body {
            line.extend(b" --header 'Content-Type:'");
        }
        for own in ["User-Agent", "Accept"] {
            if !names.contains(&own.to_ascii_lowercase().into_bytes()) {
                line.extend(format!(" --header '{own}:'").as_bytes());
            }
        }
        if request.has_body {
            match is_inline {
                true => argument(b"--data-raw", &inline, &mut line),
                false => line.extend(b" --data-binary @-"),
            }
            // curl asks before it sends a large one.
            if !names.iter().any(|name| name == b"expect") {
                line.extend(b" --header 'Expect:'");
            }
        }
        let scheme: &[u8] = if request.is_https { b"https" } else { b"http" };
        let url = match request.target.starts_with(b"/") {
            true => [scheme, b"://", &request.authority, &request.target].concat(),
            // The absolute form is a URL already, and `*` has none.
            false if request.target.starts_with(b"http") => request.target.clone(),
            false => {
                argument(b"--request-target", &request.target, &mut line);
                [scheme, b"://", &request.authority, b"/"].concat()
            }
        };
        line.push(b' ');
        quote(&url, &mut line);
        line.push(b'\n');
        out.write_all(&line)?;
        if !is_inline {
            put_base64(exchange, out)?;
            out.write_all(b"END\n")?;
        }
        Ok(notes)
    }
}

fn argument(option: &[u8], value: &[u8], line: &mut Vec<u8>) {
    line.push(b' ');
    line.extend(option);
    line.push(b' ');
    quote(value, line);
}

fn header(name: &[u8], value: &[u8], line: &mut Vec<u8>) {
    // curl removes a header with nothing behind its colon, and sends an empty one for a semicolon.
    let text = match value {
        [] => [name, b";"].concat(),
        value => [name, b": ", value].concat(),
    };
    argument(b"--header", &text, line);
}

/// Lines of 76 characters.
fn put_base64(exchange: &Exchange, out: &mut dyn Write) -> io::Result<()> {
    let (mut body, mut bytes) = (exchange.stdin.reader(), Vec::new());
    loop {
        bytes.clear();
        (&mut body).take(57).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        writeln!(out, "{}", BASE64_STANDARD.encode(&bytes))?;
    }
}

/// Writes bytes as one word for a shell. Within single quotes nothing means anything but the closing one.
pub(super) fn quote(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'\'');
    for byte in bytes {
        match byte {
            b'\'' => out.extend(b"'\\''"),
            byte => out.push(*byte),
        }
    }
    out.push(b'\'');
}
