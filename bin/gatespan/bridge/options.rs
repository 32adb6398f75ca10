//! The options of targets that are servers, sites and folders, and the library's settings that are made of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use gatespan::address::{Address, Endpoint, Network, Trusted};
use gatespan::middleware::{ClientAddressConfig, ClientField};
use gatespan::upstream::files::Coding;
use gatespan::upstream::site::{Pattern, TryFiles};
use gatespan::upstream::{fastcgi, files, http, site};

use super::{Arguments, OnOff, RequestBody, set, target, values};

#[derive(Debug, Args)]
#[command(next_help_heading = "Servers (fastcgi:, http:, https:)")]
pub(super) struct Servers {
    /// A further FastCGI server that answers for TO; each request goes to the one with the fewest. May be repeated
    #[arg(long = "also", value_name = "fastcgi:…", value_parser = parse_also)]
    pub(super) also: Vec<Endpoint>,
    /// Whether connections are kept for further requests [default: on for http:, off for fastcgi:, where a kept connection may occupy a process]
    #[arg(long, value_name = "WHETHER", value_enum)]
    pub(super) keep_alive: Option<OnOff>,
    /// Connections that are kept without a request, to each server [default: 32 for fastcgi:, 64 for http:]
    #[arg(long, value_name = "NUMBER")]
    pub(super) pool_size: Option<usize>,
    /// How long they are kept [default: 10s for fastcgi:, 60s for http:]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(super) idle_time: Option<Duration>,
    /// Connections with a request at once, to each server; further requests wait [default: 256 for fastcgi:, 1024 for http:]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    pub(super) max_connections_to: Option<usize>,
    /// How long a connection may take to be made; then another server is asked, or it is 504 [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(super) connect_timeout: Option<Duration>,
    /// Share a connection between so many requests, where a FastCGI server says that it takes that [default: one request at a time]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(2..))]
    pub(super) multiplex: Option<u16>,
    /// What an HTTP server is told of the client: nothing, X-Forwarded-For, -Proto, -Host and -Port, or Forwarded (RFC 7239) [default: x]
    #[arg(long, value_name = "FIELDS", value_enum)]
    pub(super) forwarded: Option<ClientFields>,
    /// The Host that an HTTP server is told: the client's, the server's own, or this one [default: client]
    #[arg(long, value_name = "client|target|NAME", value_parser = parse_host)]
    pub(super) host: Option<http::HostField>,
    /// The path that an HTTP server is asked for: the whole of it, or what comes after a --route's prefix or --script-name [default: whole]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub(super) path: Option<PathSent>,
    /// The certificates that an https: server's must come from, in a file of PEM [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ClientFields {
    Off,
    X,
    Forwarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PathSent {
    Whole,
    Rest,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "FastCGI programs (fastcgi:exec:)")]
pub(super) struct Programs {
    /// Processes of each program; each serves a request at a time [default: one for each processor]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    pub(super) workers: Option<usize>,
    /// After how many requests a process is replaced [default: never]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_requests: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sites (fastcgi: with --root) and folders (file:)")]
pub(super) struct Sites {
    /// What a path stands for that is no script's: a list of $uri, $uri/, and as the last one a status or a path [default: "$uri $uri/ =404"]
    #[arg(long, value_name = "LIST")]
    pub(super) try_files: Option<TryFiles>,
    /// Answer paths that fit with 403; * and ? stand for any letters, and without a slash at its beginning it fits at any depth. May be repeated
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    pub(super) deny: Vec<Pattern>,
    /// The ending of scripts' names, in the place of .php: unless that is named as well, its files are given out as they are. May be repeated
    /// [default: .php]
    #[arg(long = "script-ending", value_name = ".ENDING", value_parser = parse_ending)]
    pub(super) script_endings: Vec<String>,
    /// Where --root is for the FastCGI server, such as one in a container [default: where it is here]
    #[arg(long, value_name = "FOLDER")]
    pub(super) script_root: Option<PathBuf>,
    /// Answer for a folder without an index with a list of what is in it (file:)
    #[arg(long)]
    pub(super) listing: bool,
    /// Follow links out of the folder, as most web servers do
    #[arg(long)]
    pub(super) follow_links: bool,
    /// Send FILE.br, FILE.zst or FILE.gz in the place of FILE to clients that take it. May be repeated [default: never]
    #[arg(long, value_name = "CODING", value_enum)]
    pub(super) precompressed: Vec<Precompressed>,
    /// What files say of how long they may be cached [default: nothing]
    #[arg(long, value_name = "VALUE")]
    pub(super) cache_control: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Precompressed {
    Br,
    Zstd,
    Gzip,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Who the client is, and what it may")]
pub(super) struct Clients {
    /// Ask this FastCGI authorizer, or any other target, about each request first: 200 lets it through, anything else is the answer. With a
    /// --route's prefix before it, for what is sent there alone. May be repeated
    #[arg(long = "authorizer", value_name = "[/PREFIX=]TO", value_parser = parse_authorizer)]
    pub(super) authorizers: Vec<(Option<String>, Address)>,
    /// A proxy whose word is taken for who its client is: an address, a network such as 10.0.0.0/8, or unix: for peers on a Unix socket. May be
    /// repeated
    #[arg(long = "trusted-proxy", value_name = "NETWORK", value_parser = parse_trusted)]
    pub(super) trusted: Vec<Trusted>,
    /// Where trusted proxies say who the client is, which is then REMOTE_ADDR: x-forwarded-for, forwarded, or another field, such as X-Real-IP
    /// [default: the peer is the client]
    #[arg(long, value_name = "FIELD", value_parser = parse_client_field, requires = "trusted")]
    pub(super) resolve_client: Option<ClientField>,
}

fn parse_also(text: &str) -> Result<Endpoint, String> {
    match target::parse(text)? {
        Address::FastCgi(endpoint) => Ok(endpoint),
        _ => Err(format!("expected a further FastCGI server, such as fastcgi:/run/app2.sock, got \"{text}\"")),
    }
}

fn parse_host(text: &str) -> Result<http::HostField, String> {
    match text {
        "client" => Ok(http::HostField::Client),
        "target" => Ok(http::HostField::Target),
        name if !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte)) =>
        {
            Ok(http::HostField::Named(name.into()))
        }
        _ => Err(format!("expected client, target or the name of a host, got \"{text}\"")),
    }
}

fn parse_pattern(text: &str) -> Result<Pattern, String> {
    match text {
        "" => Err("expected a pattern such as /private or *.sql, got nothing".into()),
        text => Ok(Pattern::from(text)),
    }
}

fn parse_ending(text: &str) -> Result<String, String> {
    match text.strip_prefix('.') {
        Some(letters) if !letters.is_empty() && !letters.contains(['/', '\0']) => Ok(text.into()),
        _ => Err(format!("expected the ending of scripts' names, such as .php, got \"{text}\"")),
    }
}

fn parse_authorizer(text: &str) -> Result<(Option<String>, Address), String> {
    if !text.starts_with('/') {
        return Ok((None, target::parse(text)?));
    }
    let (prefix, to) = values::pair(text, "/PREFIX=TO, such as /admin=fastcgi:/run/auth.sock")?;
    Ok((Some(values::prefix(prefix)?), target::parse(to)?))
}

fn parse_trusted(text: &str) -> Result<Trusted, String> {
    let mut trusted = Trusted::default();
    match text {
        "unix:" => trusted.unix = true,
        network => trusted.networks.push(network.parse::<Network>().map_err(|error| error.to_string())?),
    }
    Ok(trusted)
}

fn parse_client_field(text: &str) -> Result<ClientField, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match text.to_ascii_lowercase().as_str() {
        "x-forwarded-for" => Ok(ClientField::XForwarded),
        "forwarded" => Ok(ClientField::Forwarded),
        "" => Err("expected the name of a field, such as X-Real-IP, got nothing".into()),
        _ if text.bytes().all(is_token) => Ok(ClientField::Named(text.into())),
        _ => Err(format!("expected the name of a field, such as X-Real-IP, got \"{text}\"")),
    }
}

impl Clients {
    /// All proxies that were named.
    pub(super) fn trusted(&self) -> Trusted {
        let mut all = Trusted::default();
        for trusted in &self.trusted {
            all.networks.extend(trusted.networks.iter().cloned());
            all.unix |= trusted.unix;
        }
        all
    }

    pub(super) fn client_address(&self) -> Option<ClientAddressConfig> {
        let field = self.resolve_client.clone()?;
        Some(ClientAddressConfig { trusted: self.trusted(), field, ..ClientAddressConfig::default() })
    }
}

impl Arguments {
    pub(super) fn fastcgi_config(&self) -> fastcgi::Config {
        let mut config = fastcgi::Config::default();
        let (servers, bodies, times, numbers) = (&self.servers, &self.bodies, &self.times, &self.numbers);
        if let Some(keep_alive) = servers.keep_alive {
            config.keep_alive = keep_alive == OnOff::On;
        }
        set(&mut config.idle, servers.pool_size);
        set(&mut config.idle_time, servers.idle_time);
        set(&mut config.connections, servers.max_connections_to);
        set(&mut config.connect_timeout, servers.connect_timeout);
        if let Some(how) = bodies.request_body {
            config.request_body = match how {
                RequestBody::Spool => fastcgi::RequestBody::Spool,
                RequestBody::Stream => fastcgi::RequestBody::Stream,
            };
        }
        set(&mut config.spool_limit, bodies.spool_limit);
        set(&mut config.spool_memory, bodies.spool_memory);
        set(&mut config.head_timeout, times.head_timeout);
        set(&mut config.read_timeout, times.read_timeout);
        config.timeout = times.timeout;
        set(&mut config.queue, numbers.queue);
        set(&mut config.queue_wait, numbers.queue_wait);
        config.stderr_to_client_server = self.scripts.stderr_to_server;
        config
    }

    pub(super) fn http_config(&self) -> http::Config {
        let mut config = http::Config::default();
        let (servers, times, numbers) = (&self.servers, &self.times, &self.numbers);
        set(&mut config.host, servers.host.clone());
        if let Some(path) = servers.path {
            config.path = match path {
                PathSent::Whole => http::TargetPath::Whole,
                PathSent::Rest => http::TargetPath::PathInfo,
            };
        }
        if let Some(forwarded) = servers.forwarded {
            config.forwarded = match forwarded {
                ClientFields::Off => http::ForwardedFields::Off,
                ClientFields::X => http::ForwardedFields::XForwarded,
                ClientFields::Forwarded => http::ForwardedFields::Forwarded,
            };
        }
        config.trusted = self.clients.trusted();
        set(&mut config.idle, servers.pool_size);
        if servers.keep_alive == Some(OnOff::Off) {
            config.idle = 0;
        }
        set(&mut config.idle_time, servers.idle_time);
        set(&mut config.connections, servers.max_connections_to);
        set(&mut config.connect_timeout, servers.connect_timeout);
        set(&mut config.head_timeout, times.head_timeout);
        set(&mut config.read_timeout, times.read_timeout);
        config.timeout = times.timeout;
        set(&mut config.queue, numbers.queue);
        set(&mut config.queue_wait, numbers.queue_wait);
        config.ca_file.clone_from(&servers.ca_file);
        config
    }

    /// How a program is kept running; the program itself is the target's affair.
    pub(super) fn program_config(&self) -> fastcgi::ProgramConfig {
        let mut config = fastcgi::ProgramConfig::new("");
        set(&mut config.workers, self.programs.workers);
        config.max_requests = self.programs.max_requests;
        config.environment.clone_from(&self.scripts.env);
        config.pass_environment.clone_from(&self.scripts.pass_env);
        set(&mut config.kill_grace, self.times.kill_grace);
        config.drain = self.listening.shutdown_timeout;
        config
    }

    pub(super) fn files_config(&self) -> anyhow::Result<files::Config> {
        let mut config = files::Config::default();
        if !self.scripts.index.is_empty() {
            config.index = self.index()?;
        }
        let sites = &self.sites;
        config.listing = sites.listing;
        config.precompressed = sites
            .precompressed
            .iter()
            .map(|coding| match coding {
                Precompressed::Br => Coding::Brotli,
                Precompressed::Zstd => Coding::Zstd,
                Precompressed::Gzip => Coding::Gzip,
            })
            .collect();
        config.cache_control.clone_from(&sites.cache_control);
        config.links = self.links();
        Ok(config)
    }

    pub(super) fn site_config(&self) -> anyhow::Result<site::Config> {
        let mut config = site::Config::default();
        if !self.scripts.index.is_empty() {
            config.index = self.index()?;
        }
        let sites = &self.sites;
        if !sites.script_endings.is_empty() {
            config.endings.clone_from(&sites.script_endings);
        }
        set(&mut config.try_files, sites.try_files.clone());
        config.deny.clone_from(&sites.deny);
        config.script_root.clone_from(&sites.script_root);
        config.links = self.links();
        Ok(config)
    }

    fn links(&self) -> site::Links {
        if self.sites.follow_links { site::Links::Anywhere } else { site::Links::Within }
    }

    fn index(&self) -> anyhow::Result<Vec<String>> {
        let names = self.scripts.index.iter().map(|name| match name.to_str() {
            Some(text) if !text.is_empty() && !text.contains('/') => Ok(text.to_owned()),
            _ => anyhow::bail!("expected the name of a file as index, got \"{}\"", name.display()),
        });
        names.collect()
    }
}
