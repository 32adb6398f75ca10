//! CGI programs as applications: the script host.
//!
//! [`Host`] answers each request by running a program, as RFC 3875 has it. It is an [`Application`](crate::Application), so that
//! it runs behind every gateway and within any middleware.
//!
//! ```no_run
//! use gatespan::middleware::Mount;
//! use gatespan::upstream::cgi::{Config, Host};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::default();
//! config.roots = vec!["/usr/lib/cgi-bin".into()];
//! let site = Mount::new().at("/cgi-bin", Host::new(config)?);
//! # let _ = site;
//! # Ok(())
//! # }
//! ```
//!
//! [`Host`] shows how it is served, and how it is a tower service.
//!
//! In reading order: [`Config`]; [`script`], which file answers; [`environment`], what it is told; the host and its queue; [`process`],
//! [`spawn`] and [`watcher`](super::watcher), how programs are started and ended; `exchange`, one request from the first byte to the last; [`failure`],
//! why there is no answer.
//!
//! # What a script gets
//!
//! - Descriptor 0 is the request's body: `/dev/null` where there is none, a pipe, or an unlinked file for a long body whose length was not known
//!   beforehand ([`RequestBody`]). It ends where CONTENT_LENGTH says. A script need not read it.
//! - Descriptor 1 is a pipe. What is written there goes on to the client at once; a slow client slows the script down.
//! - Descriptor 2 is a pipe, too. Its lines go to `tracing` as warnings, with the fields `request_id` and `script`: at most 4,096 bytes of each, and
//!   500 lines in 10 seconds. Nothing that is written there ever blocks the script or holds up its answer.
//! - All other descriptors are closed, the working directory is the script's folder, and the environment is built from nothing.
//!
//! # What becomes of it
//!
//! A script leads a process group of its own. If its client leaves, it takes longer than it may, or breaks the rules, the group
//! gets SIGTERM and, after [`Config::kill_grace`], SIGKILL. A process that calls `setsid` leaves the group and escapes that.
//!
//! After a normal end the group is left alone unless [`Config::kill_leftovers`] says otherwise. The response ends with the output; if another
//! process holds that open, [`Config::leftover_grace`] after the script itself has exited. Such a process can't write to the client any
//! more from then on, and what it writes to standard error is lost. A script that closes its output and works on has answered; it
//! has [`Config::linger`] to finish.
//!
//! A place under [`Config::concurrent`] is given back only when the script has exited and has been waited for.
//!
//! | how it ends | what the client sees |
//! | --- | --- |
//! | it exits, with whatever code | the answer; a code that is not 0 is logged |
//! | a signal ends it, or fewer bytes come than Content-Length says | 502 before the head, a cut response after it |
//! | more bytes come than that | as many as were announced; it is logged |
//! | no head, or one that is none | 502 |
//! | it takes too long | 504 before the head, a cut response after it |
//!
//! A request that fails before its head is one event of `tracing`, with the fields `request_id`, `script`, `status`, `cause` and `mend`; a response that is cut
//! is a line in the gateway's log.

mod config;
mod host;
pub mod failure;
mod diagnosis;
pub mod script;
mod spelling;
mod walk;
pub mod environment;
mod steering;
mod queue;
pub mod process;
pub mod spawn;
mod exchange;
mod pump;
mod clock;
mod nph;
mod outlet;
mod pace;
mod report;
mod stderr;

pub use config::{Config, ConfigError, RequestBody};
pub use host::Host;
pub use report::Report;
