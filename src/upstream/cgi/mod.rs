//! CGI programs as applications: the script host.

pub mod process;
pub mod spawn;
pub mod watcher;
