//! The servers in Rust that are measured, each in a process of its own: this binary started again with a listening socket as
//! descriptor 0.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use gatespan::{Body, Environ, Error, Options, StartResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_fastcgi::{RequestResult, Requests};

/// How long a large answer's body is.
pub(crate) const LARGE: usize = 1024 * 1024;

/// What every server answers a small request with.
pub(crate) const HELLO: &[u8] =
    b"Status: 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 14\r\n\r\nHello, world!\n";

/// The head of a large answer.
pub(crate) const LARGE_HEAD: &[u8] =
    b"Status: 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1048576\r\n\r\n";

/// Serves descriptor 0 for ever.
pub(crate) fn serve(name: &str, argument: Option<&str>) -> ExitCode {
    match name {
        "gatespan-one-thread" => {
            let mut options = Options::default();
            options.threads = Some(1);
            gatespan::run_with(hello, options)
        }
        "gatespan-large" => gatespan::run(large),
        "bare" => on_current_thread(argument, bare),
        "relay" => on_current_thread(argument, relay),
        "tokio-fastcgi" => on_current_thread(argument, tokio_fastcgi),
        other => {
            eprintln!("expected the name of a server, got {other}");
            ExitCode::from(2)
        }
    }
}

async fn hello(_environ: Environ, start_response: StartResponse) -> Result<&'static str, Error> {
    start_response.start("200 OK", [("Content-Type", "text/plain; charset=utf-8")])?;
    Ok("Hello, world!\n")
}

/// GET is answered with 1 MiB in one piece, POST is read to its end and answered with a line.
async fn large(mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
    static CONTENT: [u8; LARGE] = [b'x'; LARGE];
    if environ.method() == b"POST" {
        while environ.input().chunk().await?.is_some() {}
        start_response.start("200 OK", [("Content-Type", "text/plain; charset=utf-8")])?;
        return Ok("Hello, world!\n".into());
    }
    start_response.start("200 OK", [("Content-Type", "application/octet-stream")])?;
    Ok(Bytes::from_static(&CONTENT).into())
}

fn on_current_thread<F: Future<Output = io::Result<()>>>(
    argument: Option<&str>,
    server: impl FnOnce(UnixListener, Option<String>) -> F,
) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let listener = std::os::unix::net::UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
            listener.set_nonblocking(true)?;
            server(UnixListener::from_std(listener)?, argument.map(str::to_owned)).await
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The limit: reads, looks at the headers of records for the end of STDIN, and writes what the file holds.
async fn bare(listener: UnixListener, file: Option<String>) -> io::Result<()> {
    let answer: Arc<[u8]> = std::fs::read(file.unwrap_or_default())?.into();
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = answer.clone();
        tokio::spawn(async move {
            // A client that leaves is no matter.
            let _ = answer_all(stream, &answer).await;
        });
    }
}

/// The limit for what passes bytes on: to another socket, without a look at them.
async fn relay(listener: UnixListener, to: Option<String>) -> io::Result<()> {
    const BUFFER: usize = 64 * 1024;
    let to: Arc<str> = to.unwrap_or_default().into();
    loop {
        let (mut stream, _) = listener.accept().await?;
        let to = to.clone();
        tokio::spawn(async move {
            let mut server = UnixStream::connect(&*to).await?;
            tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut server, BUFFER, BUFFER).await
        });
    }
}

async fn answer_all(mut stream: UnixStream, answer: &[u8]) -> io::Result<()> {
    const HEADER: usize = 8;
    const BEGIN: usize = 16;
    let mut buffer = vec![0; 64 * 1024];
    let (mut filled, mut skip, mut keep) = (0, 0, false);
    loop {
        let len = stream.read(&mut buffer[filled..]).await?;
        if len == 0 {
            return Ok(());
        }
        filled += len;
        let mut at = 0;
        loop {
            let skipped = skip.min(filled - at);
            at += skipped;
            skip -= skipped;
            let record = &buffer[at..filled];
            if record.len() < HEADER || (record[1] == 1 && record.len() < BEGIN) {
                break;
            }
            let content = usize::from(u16::from_be_bytes([record[4], record[5]]));
            match record[1] {
                1 => keep = record[10] & 1 == 1,
                5 if content == 0 => {
                    stream.write_all(answer).await?;
                    if !keep {
                        return Ok(());
                    }
                }
                _ => {}
            }
            skip = HEADER + content + usize::from(record[6]);
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// The crate of that name, with the read buffer without which it reads every header by itself. With an argument its
/// answers to GET are large.
async fn tokio_fastcgi(listener: UnixListener, is_large: Option<String>) -> io::Result<()> {
    let large: Arc<[u8]> = [LARGE_HEAD, &vec![b'x'; LARGE]].concat().into();
    let answer = if is_large.is_some() { large } else { HELLO.into() };
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let (read, write) = stream.into_split();
            let mut requests = Requests::new(BufReader::with_capacity(64 * 1024, read), write, 1, 1);
            while let Ok(Some(request)) = requests.next().await {
                let answer = answer.clone();
                let _ = request
                    .process(|request| async move {
                        let answer = if request.get_str_param("request_method") == Some("POST") {
                            if io::copy(&mut request.get_stdin().by_ref(), &mut io::sink()).is_err() {
                                return RequestResult::Complete(1);
                            }
                            HELLO
                        } else {
                            &*answer
                        };
                        let mut stdout = request.get_stdout();
                        let mut rest = answer;
                        while !rest.is_empty() {
                            match stdout.write(rest).await {
                                Ok(written @ 1..) => rest = &rest[written.min(rest.len())..],
                                _ => return RequestResult::Complete(1),
                            }
                        }
                        RequestResult::Complete(0)
                    })
                    .await;
            }
        });
    }
}
