//! The answer of examples/hello.rs as a CGI script that has a tokio runtime and makes no use of it: what Rust and tokio cost before
//! anything is done with them.

use std::io::Write;
use std::process::ExitCode;

const ANSWER: &[u8] =
    b"Status: 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 14\r\n\r\nHello, world!\n";

fn main() -> ExitCode {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return ExitCode::FAILURE;
    };
    match runtime.block_on(async { std::io::stdout().write_all(ANSWER) }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
