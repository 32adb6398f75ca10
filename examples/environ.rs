//! Prints what it is told: its variables as sorted NAME=VALUE lines, then the length and the SHA-256 of the request's body.
//!
//! Try it: `cargo run --example environ`, then `curl -d some=data 'http://127.0.0.1:8080/path?query'`

use std::process::ExitCode;

use gatespan::{Environ, Error, StartResponse};
use sha2::{Digest, Sha256};

async fn print(mut environ: Environ, start_response: StartResponse) -> Result<Vec<u8>, Error> {
    // Names and values are bytes, in any encoding, so the page is put together as bytes, too.
    let mut lines: Vec<Vec<u8>> =
        environ.variables().iter().map(|(name, value)| [name, b"=", &one_line(value), b"\n"].concat()).collect();
    lines.sort();
    let mut page = lines.concat();

    // Piece by piece, so that a body of any length takes no memory.
    let (mut length, mut sha256) = (0, Sha256::new());
    while let Some(piece) = environ.input().chunk().await? {
        length += piece.len();
        sha256.update(&piece);
    }
    let digest: String = sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    page.extend(format!("\n{length} bytes of body, SHA-256 {digest}\n").into_bytes());

    start_response.start("200 OK", [("Content-Type", "text/plain; charset=utf-8")])?;
    Ok(page)
}

/// A value can hold line feeds, and must not pass for another variable.
fn one_line(value: &[u8]) -> Vec<u8> {
    value.iter().map(|byte| if byte.is_ascii_control() { b'?' } else { *byte }).collect()
}

fn main() -> ExitCode {
    gatespan::run(print)
}
