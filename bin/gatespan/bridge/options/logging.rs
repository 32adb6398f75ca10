//! The options of what is told of each request.

use std::path::PathBuf;

use clap::Args;

use super::OnOff;

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct AccessLog {
    /// A line for each request, in this file, or - for standard output: combined with seconds and request id behind it, or JSON with --log-format
    /// json. SIGHUP opens the file anew [default: none]
    #[arg(long, value_name = "FILE")]
    pub(crate) access_log: Option<PathBuf>,
    /// Name each request in the response (X-Request-Id). Logs and scripts are told either way, and a name that the request brings is kept
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t = OnOff::On)]
    pub(crate) request_id: OnOff,
}
