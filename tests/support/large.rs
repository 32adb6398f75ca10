//! Bodies of 1 GiB through a process, and how much memory it takes for them.

use std::time::Instant;

use super::client::{Client, Upload};
use super::process::{memory, note};

pub const LENGTH: u64 = 1 << 30;

/// The most memory that a process may take for it, in KiB.
pub const MEMORY: u64 = 48 * 1024;

/// What bodies pass through.
pub struct Passage<'a> {
    pub name: &'a str,
    pub address: std::net::SocketAddr,
    /// The process whose memory is looked at.
    pub process: u32,
}

impl Passage<'_> {
    /// Up: to a target that answers with the length of what came.
    pub async fn up(&self, target: &str, upload: Upload) {
        let start = Instant::now();
        let mut client = Client::connect(self.address).await.expect("the server accepts connections");
        let answer = client.send("POST", target, &[], upload).await;
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert_eq!(answer.text(), format!("{LENGTH}\n"), "{}", self.name);
        note(self.name, "1 GiB up", start);
        self.check();
    }

    /// Down: from a target that answers with so much.
    pub async fn down(&self, target: &str) {
        let start = Instant::now();
        let mut client = Client::connect(self.address).await.expect("the server accepts connections");
        let mut head = client.head("GET", target, &[], Upload::Nothing).await.expect("a head comes");
        let mut length = 0;
        while let Some(piece) = head.next().await.unwrap_or_else(|error| panic!("{}: {error}", self.name)) {
            length += piece.len() as u64;
        }
        assert_eq!(length, LENGTH, "{}", self.name);
        note(self.name, "1 GiB down", start);
        self.check();
    }

    /// The most that the process has had until now.
    fn check(&self) {
        let used = memory(self.process);
        eprintln!("{}: {used} KiB", self.name);
        assert!(used < MEMORY, "{}: {used} KiB for 1 GiB", self.name);
    }
}
