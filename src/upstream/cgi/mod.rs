//! CGI programs as applications: the script host.

mod config;
pub mod failure;
mod diagnosis;
pub mod script;
mod spelling;
mod walk;
pub mod environment;
mod steering;
pub mod process;
pub mod spawn;
pub mod watcher;

pub use config::{Config, ConfigError, RequestBody};
