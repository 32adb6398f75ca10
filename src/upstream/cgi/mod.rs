//! CGI programs as applications: the script host.

pub mod process;
pub mod spawn;
pub mod watcher;
mod nph;
mod queue;
