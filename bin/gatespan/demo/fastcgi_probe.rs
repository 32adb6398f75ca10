//! The demo's FastCGI probe, in the web server's place: one connection for each request, over a Unix socket. It is what makes
//! the FastCGI gateway visible, and no more: no pool, no limits of time.

use std::io;
use std::path::PathBuf;

use bytes::Buf;
use gatespan::application::Input;
use gatespan::protocol::fastcgi::web_server_end::{Event, Settings};
use gatespan::protocol::fastcgi::{ProtocolStatus, Role, WebServerEnd};
use gatespan::{Application, Body, Environ, Error, StartResponse};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::relay::{Answer, bad_gateway, relay};

/// How much is read at once, in bytes.
const BLOCK: usize = 64 * 1024;

/// Calls what answers on a FastCGI socket.
#[derive(Debug, Clone)]
pub(crate) struct FastCgiProbe {
    socket: PathBuf,
}

impl FastCgiProbe {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }
}

impl Application for FastCgiProbe {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(bad_gateway)?;
        let mut end = WebServerEnd::new(Settings::default());
        end.begin(Role::Responder, false, environ.variables().iter())?;
        let input = environ.take_input();
        let errors = environ.errors();
        relay(&start_response, move |mut answer| async move {
            let ended = exchange(stream, end, input, &mut answer, |text| {
                errors.line(String::from_utf8_lossy(text.trim_ascii_end()));
            });
            let ended = ended.await;
            (answer, ended)
        })
        .await
    }
}

/// Sends the request's body and receives the answer, both at once.
async fn exchange(
    stream: UnixStream,
    mut end: WebServerEnd,
    mut input: Input,
    answer: &mut Answer,
    log: impl Fn(&[u8]),
) -> Result<(), Error> {
    let id = gatespan::protocol::fastcgi::RequestId(1);
    let mut input_ended = false;
    loop {
        while let Some(event) = end.next_event().map_err(bad_gateway)? {
            match event {
                Event::Stdout { data, .. } => answer.receive(data).await?,
                Event::Stderr { data, .. } => log(&data),
                Event::EndRequest {
                    application_status: 0, protocol_status: ProtocolStatus::RequestComplete, ..
                } => {
                    return Ok(());
                }
                Event::EndRequest { application_status, protocol_status, .. } => {
                    let message = format!(
                        "expected a request that ends well, got application status {application_status} and {protocol_status:?}"
                    );
                    return Err(Error::new(message).with_status(502));
                }
                _ => {}
            }
        }
        let interest =
            if end.output().is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let may_send = end.output().is_empty() && !input_ended;
        tokio::select! {
            ready = stream.ready(interest) => {
                let ready = ready?;
                if ready.is_writable() && !end.output().is_empty() {
                    match stream.try_write(end.output().chunk()) {
                        Ok(len) => end.output().advance(len),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        // It has closed, and what it had to say is still there to be read.
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                            let rest = end.output().len();
                            end.output().advance(rest);
                            input_ended = true;
                        }
                        Err(error) => return Err(bad_gateway(error)),
                    }
                }
                if ready.is_readable() {
                    // Without room of its own a read would take what happens to be left, and cut what came as one.
                    end.receive_buffer().reserve(BLOCK);
                    match stream.try_read_buf(end.receive_buffer()) {
                        Ok(0) => return Err(bad_gateway(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "expected END_REQUEST, got the end of the connection",
                        ))),
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(bad_gateway(error)),
                    }
                }
            }
            piece = input.chunk(), if may_send => match piece? {
                Some(piece) => end.stdin(id, piece),
                None => {
                    end.end_stdin(id);
                    input_ended = true;
                }
            },
        }
    }
}
