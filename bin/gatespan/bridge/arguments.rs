//! The command line of `gatespan bridge`: FROM, TO and the routes, with the options of each subject behind them.

use clap::Args;
use gatespan::address::{Address, AddressError};

use super::options::{clients, listening, logging, scripts, servers, sites};
use super::target;
use crate::values;

/// Take requests in at FROM, and have them answered by TO
///
/// FROM is where requests come in: http://HOST:PORT, http:/path/of/socket, fastcgi:/path/of/socket, fastcgi://HOST:PORT, either with @NAME for an abstract
/// socket or with fd for one that is handed over (descriptor 0, or LISTEN_FDS from systemd); or cgi:, where a web server starts this
/// process as a CGI script.
///
/// TO is what answers: cgi:/FOLDER/ for the CGI programs in a folder, cgi:/PROGRAM for one of them; fastcgi:/SOCKET, fastcgi://HOST:PORT or
/// fastcgi:@NAME for a FastCGI server, fastcgi:exec:/PROGRAM for one that is started here, each with --root for the scripts and files of a site;
/// http://HOST:PORT, http:/SOCKET or https://HOST for an HTTP server; file:/FOLDER for files; or an application that is built in: app:hello (a line of
/// text), app:environ (what an application is told), app:echo (the request's body), app:demo (that of gatespan demo).
///
/// An option that has no effect for the targets that are named is refused.
///
/// Sizes are such as 64K, 10M or 1G (K is 1,024), lengths of time such as 500ms, 30s or 2m; a number alone is bytes or seconds.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where requests come in
    #[arg(value_name = "FROM", value_parser = parse_from)]
    pub(crate) from: Address,
    /// What answers them
    #[arg(value_name = "TO", value_parser = target::parse)]
    pub(crate) to: Address,
    /// Send paths that begin so elsewhere, the longest first; what is sent there sees the rest as its path. May be repeated
    #[arg(long = "route", value_name = "/PREFIX=TO", value_parser = parse_route)]
    pub(crate) routes: Vec<(String, Address)>,
    /// Answer below this path only, which is then SCRIPT_NAME [default: the root, or what the web server says]
    #[arg(long, value_name = "/PREFIX", value_parser = values::prefix)]
    pub(crate) script_name: Option<String>,
    /// How often a script may send one request on to another path of the site
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    pub(crate) max_redirects: usize,
    #[command(flatten)]
    pub(crate) listening: listening::Listening,
    #[command(flatten)]
    pub(crate) clients: clients::Clients,
    #[command(flatten)]
    pub(crate) scripts: scripts::Scripts,
    #[command(flatten)]
    pub(crate) servers: servers::Servers,
    #[command(flatten)]
    pub(crate) programs: servers::Programs,
    #[command(flatten)]
    pub(crate) sites: sites::Sites,
    #[command(flatten)]
    pub(crate) bodies: scripts::Bodies,
    #[command(flatten)]
    pub(crate) times: scripts::Times,
    #[command(flatten)]
    pub(crate) numbers: scripts::Numbers,
    #[command(flatten)]
    pub(crate) limits: scripts::ScriptLimits,
    #[command(flatten)]
    pub(crate) files: scripts::Files,
    #[command(flatten)]
    pub(crate) log: logging::AccessLog,
}

const EXAMPLES: &str = "\
Examples:
  gatespan bridge http://127.0.0.1:8080 cgi:cgi-bin/               a web server for CGI programs
  gatespan bridge fastcgi:/run/gw.sock cgi:/usr/lib/cgi-bin/       what fcgiwrap does
  gatespan bridge fastcgi:fd cgi:/usr/lib/cgi-bin/                 with a socket from systemd
  gatespan bridge http://[::1]:8080 cgi:/usr/lib/cgit/cgit.cgi     one program for all paths
  gatespan bridge http://127.0.0.1:8080 fastcgi:/run/php/php-fpm.sock --root site/
                                                                   a web server for PHP
  gatespan bridge http://127.0.0.1:8080 fastcgi:exec:bin/app       a program, started and watched
  gatespan bridge fastcgi:/run/gw.sock http://127.0.0.1:3000       HTTP behind fastcgi_pass
  gatespan bridge http://127.0.0.1:8080 cgi:bin/ --route /hi=app:hello --access-log -
  gatespan bridge http://127.0.0.1:8080 app:environ                what an application is told

A PHP site with a front controller also needs, as WordPress has it:
  --try-files '$uri $uri/ /index.php?$args' --deny '/wp-content/uploads/*.php'

As a CGI script, with this as its first line; nothing that follows TO is read as an option:
  #!/usr/bin/env -S gatespan bridge cgi: cgi:/srv/scripts/
  #!/usr/bin/env -S gatespan bridge cgi: fastcgi:/run/app.sock

Signals:
  SIGTERM, SIGINT  running requests are finished, within --shutdown-timeout; a second ends them
  SIGHUP           the file of --access-log is opened anew

Exit codes:
  0    ended by a signal, or the script's request answered
  1    not served, or not to the end, and standard error says why
  2    the command line could not be understood
  143  ended by a second SIGTERM (130 by SIGINT)";

/// A mistake in the command line that only shows when its parts are put together: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

pub(crate) fn parse_from(text: &str) -> Result<Address, String> {
    let expected = || {
        format!(
            "expected where requests come in, such as http://127.0.0.1:8080, fastcgi:/run/gatespan.sock or cgi:, got \"{text}\""
        )
    };
    match text.parse() {
        Ok(address @ (Address::Http(_) | Address::FastCgi(_) | Address::CgiProcess)) => Ok(address),
        Ok(_) | Err(AddressError::NoScheme(_) | AddressError::UnknownScheme(_)) => Err(expected()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_route(text: &str) -> Result<(String, Address), String> {
    let (prefix, to) = values::pair(text, "/PREFIX=TO, such as /hello=app:hello")?;
    Ok((values::prefix(prefix)?, target::parse(to)?))
}

impl Arguments {
    /// All targets: TO, those of routes, those that are asked first.
    pub(super) fn targets(&self) -> impl Iterator<Item = &Address> {
        let routes = self.routes.iter().map(|(_, to)| to);
        std::iter::once(&self.to).chain(routes).chain(self.clients.authorizers.iter().map(|(_, to)| to))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    /// What a command line is read as.
    pub(in crate::bridge) fn arguments(words: &[&str]) -> Arguments {
        let words = ["gatespan", "bridge"].iter().chain(words);
        match crate::Cli::try_parse_from(words).expect("understood").command {
            crate::Command::Bridge(arguments) => *arguments,
            _ => unreachable!("the command is bridge"),
        }
    }
}
