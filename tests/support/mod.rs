//! What the tests with real servers share: starting and stopping them, an HTTP client that sees what others hide, and
//! the one table of requests that every front has to pass.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, missing_docs, reason = "a module of a test binary has no outside")]

pub mod client;
pub mod large;
pub mod pattern;
pub mod process;
pub mod script_scenes;
pub mod scripts;
pub mod table;

use std::net::SocketAddr;
use std::path::PathBuf;

use process::{Scratch, Server};

/// A web server with the application behind it, ready for requests.
pub struct Front {
    /// `server/mode/…`: what the table's patterns are matched with.
    pub name: &'static str,
    pub address: SocketAddr,
    /// The web server and, where it does not start it, the application. They stop when this is dropped, first to last.
    pub servers: Vec<Server>,
    /// After the servers, so that their logs can still be read when they have stopped.
    pub scratch: Scratch,
}

impl Front {
    /// Where everything that was written to the server's and the application's logs is.
    pub fn logs(&self) -> Vec<PathBuf> {
        self.servers.iter().flat_map(|server| server.logs.iter().cloned()).collect()
    }

    /// Whether `pattern` covers this front: the name's first parts, where `*` stands for any one.
    pub fn is(&self, pattern: &str) -> bool {
        covers(pattern, self.name)
    }
}

/// Whether the first parts of a name are those of `pattern`, where `*` stands for any one.
fn covers(pattern: &str, name: &str) -> bool {
    let mut parts = name.split('/');
    pattern.split('/').all(|wanted| parts.next().is_some_and(|part| wanted == "*" || wanted == part))
}

/// What is expected of all fronts and, with the reason, of those that differ. The first pattern that covers a front wins.
pub struct PerFront<T: 'static> {
    pub usual: T,
    pub differs: &'static [(&'static str, T, &'static str)],
}

impl<T> PerFront<T> {
    pub fn of(&self, front: &Front) -> &T {
        self.named(front.name)
    }

    /// For a name that is longer than the front's.
    pub fn named(&self, name: &str) -> &T {
        let found = self.differs.iter().find(|(pattern, _, _)| covers(pattern, name));
        found.map_or(&self.usual, |(_, expected, _)| expected)
    }
}
