//! A request's body on its way from the client into the script's standard input.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_core::Stream;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;

use crate::application::{Input, InputError};

/// The request's body on its way into the script.
pub(super) struct Pump {
    input: Input,
    chunk: Bytes,
    stdin: Option<pipe::Sender>,
    /// The script could take more, and the client sends nothing.
    pub(super) waits_for_client: bool,
}

/// Whether anything was moved.
pub(super) enum Moved {
    Nothing,
    Bytes,
}

impl Pump {
    pub(super) fn new(input: Input, stdin: Option<pipe::Sender>) -> Self {
        Self { input, chunk: Bytes::new(), stdin, waits_for_client: false }
    }

    /// Moves what can be moved.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Result<Moved, InputError> {
        let mut moved = Moved::Nothing;
        while let Some(stdin) = &mut self.stdin {
            if self.chunk.is_empty() {
                let next = Pin::new(&mut self.input).poll_next(cx);
                if std::mem::replace(&mut self.waits_for_client, next.is_pending()) {
                    // Up to now the script was not waited for.
                    moved = Moved::Bytes;
                }
                match next {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(chunk))) => self.chunk = chunk,
                    Poll::Ready(None) => self.close(),
                    Poll::Ready(Some(Err(error))) => {
                        self.close();
                        return Err(error);
                    }
                }
                continue;
            }
            match Pin::new(stdin).poll_write(cx, &self.chunk) {
                Poll::Pending => break,
                Poll::Ready(Ok(len)) => {
                    self.chunk.advance(len);
                    moved = Moved::Bytes;
                }
                // EPIPE: the script reads no more of it, which is its own business. The gateway discards the rest.
                Poll::Ready(Err(_)) => self.close(),
            }
        }
        Ok(moved)
    }

    pub(super) fn is_open(&self) -> bool {
        self.stdin.is_some()
    }

    /// The end of the script's input.
    pub(super) fn close(&mut self) {
        self.stdin = None;
        self.chunk = Bytes::new();
        self.input = Input::empty();
        self.waits_for_client = false;
    }
}
