//! What is sent of a request after its params: the body and, for a Filter, the file, in a form that can be sent again.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;

use crate::application::{DEFAULT_BLOCK_SIZE, FileRange, Input, InputError};
use crate::protocol::fastcgi::{RequestId, WebServerEnd};

/// A request's streams on their way to a server.
pub(super) struct Upload {
    stdin: Input,
    /// The file that a Filter is to filter.
    data: Option<Input>,
    /// What `stdin` is made of again, where it was stored whole.
    stored: Option<FileRange>,
    stage: Stage,
    /// The pieces that were sent, as long as the request may have to be sent again.
    sent: Vec<Bytes>,
    sent_len: usize,
    /// How many of `sent` have gone to the server that is asked now.
    resent: usize,
    replay: Replay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Stdin,
    Data,
    Done,
}

/// Whether the request can be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replay {
    /// What is sent is kept, up to this many bytes.
    UpTo(usize),
    /// Something was sent that was not kept.
    Lost,
}

impl Upload {
    /// A body, and the file for a Filter. Up to `replay_limit` bytes of the body are kept for sending them again.
    pub(super) fn new(stdin: Input, data: Option<Input>, replay_limit: usize) -> Self {
        Self {
            stdin,
            data,
            stored: None,
            stage: Stage::Stdin,
            sent: Vec::new(),
            sent_len: 0,
            resent: 0,
            replay: Replay::UpTo(replay_limit),
        }
    }

    /// The same with a body that lies in a file and can be read from there as often as is needed.
    pub(super) fn stored(file: File, len: u64, data: Option<Input>) -> Self {
        let range = FileRange { file: Arc::new(file), offset: 0, len, block_size: DEFAULT_BLOCK_SIZE };
        Self { stored: Some(range.clone()), ..Self::new(Input::from_file(range), data, usize::MAX) }
    }

    /// What it was made of: the body, and the file for a Filter.
    pub(super) fn take(&mut self) -> (Input, Option<Input>) {
        (std::mem::take(&mut self.stdin), self.data.take())
    }

    /// How long the body is, where that is known.
    pub(super) fn len(&self) -> Option<u64> {
        self.stdin.remaining()
    }

    /// Whether all has been handed to the connection.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Hands the next piece to the connection; pending when the client owes it. To be called until all is done.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        end: &mut WebServerEnd,
        id: RequestId,
    ) -> Poll<Result<(), InputError>> {
        match self.stage {
            Stage::Stdin => match ready!(self.poll_stdin(cx)).transpose()? {
                Some(piece) => end.stdin(id, piece),
                None => {
                    end.end_stdin(id);
                    self.stage = if self.data.is_some() { Stage::Data } else { Stage::Done };
                }
            },
            Stage::Data => {
                let piece = match &mut self.data {
                    Some(data) => ready!(Pin::new(data).poll_next(cx)).transpose()?,
                    None => None,
                };
                match piece {
                    Some(piece) => {
                        // A Filter's file is as long as it likes, so none of it is kept.
                        self.lose();
                        end.data(id, piece);
                    }
                    None => {
                        end.end_data(id);
                        self.stage = Stage::Done;
                    }
                }
            }
            Stage::Done => {}
        }
        Poll::Ready(Ok(()))
    }

    fn poll_stdin(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        if let Some(piece) = self.sent.get(self.resent) {
            self.resent += 1;
            return Poll::Ready(Some(Ok(piece.clone())));
        }
        let piece = ready!(Pin::new(&mut self.stdin).poll_next(cx));
        if let Some(Ok(piece)) = &piece
            && self.stored.is_none()
            && let Replay::UpTo(limit) = self.replay
        {
            self.sent_len += piece.len();
            if self.sent_len > limit {
                self.lose();
            } else {
                self.sent.push(piece.clone());
                self.resent += 1;
            }
        }
        Poll::Ready(piece)
    }

    /// From now on nothing is kept: the request is not sent again.
    pub(super) fn lose(&mut self) {
        self.replay = Replay::Lost;
        self.sent = Vec::new();
        self.resent = 0;
        self.stored = None;
    }

    /// Begins at the beginning again; false when that is not possible.
    pub(super) fn rewind(&mut self) -> bool {
        if self.replay == Replay::Lost {
            return false;
        }
        if let Some(range) = &self.stored {
            self.stdin = Input::from_file(range.clone());
        }
        self.stage = Stage::Stdin;
        self.resent = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Buf;

    use super::*;
    use crate::protocol::fastcgi::Role;
    use crate::protocol::fastcgi::web_server_end::Settings;

    /// All that is sent of an upload on a connection of its own.
    fn sent(upload: &mut Upload) -> Vec<u8> {
        let mut end = WebServerEnd::new(Settings::default());
        let none: [(&[u8], &[u8]); 0] = [];
        let id = end.begin(Role::Filter, true, none).unwrap();
        let begun = end.output().len();
        while !upload.is_done() {
            match upload.poll_piece(&mut Context::from_waker(Waker::noop()), &mut end, id) {
                Poll::Ready(piece) => piece.unwrap(),
                Poll::Pending => panic!("all is there"),
            }
        }
        let output = end.output();
        output.advance(begun);
        output.copy_to_bytes(output.len()).into()
    }

    #[test]
    fn what_was_sent_can_be_sent_again_up_to_the_limit() {
        for (limit, can) in [(4, false), (5, true), (6, true)] {
            let mut upload = Upload::new(Input::from_bytes("hello"), None, limit);
            let first = sent(&mut upload);
            assert_eq!(upload.rewind(), can, "{limit}");
            if can {
                assert_eq!(sent(&mut upload), first);
                upload.lose();
                assert!(!upload.rewind());
            }
        }
    }

    #[test]
    fn a_filters_file_follows_the_body_and_is_sent_once() {
        let mut upload = Upload::new(Input::empty(), Some(Input::from_bytes("file")), 100);
        assert!(upload.rewind());
        let expected = b"\x01\x05\0\x01\0\0\0\0\x01\x08\0\x01\0\x04\x04\0file\0\0\0\0\x01\x08\0\x01\0\0\0\0";
        assert_eq!(sent(&mut upload), expected);
        assert!(!upload.rewind());
    }
}
