//! CGI programs as applications: the script host.

mod config;
pub mod failure;
pub mod script;
mod spelling;
mod walk;
pub mod environment;
pub mod process;
pub mod spawn;
pub mod watcher;

pub use config::{Config, ConfigError, RequestBody};
