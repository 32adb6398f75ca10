//! CGI programs as applications: the script host.

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
pub mod watcher;
mod exchange;
mod nph;
mod stderr;

pub use config::{Config, ConfigError, RequestBody};
pub use host::Host;
