//! What TO names: opened once, before anything listens, so that a mistake is told to whoever starts the bridge.

use std::cell::RefCell;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use gatespan::Application;
use gatespan::address::{Address, AddressError, Endpoint};
use gatespan::application::AnyApplication;
use gatespan::middleware::variables;
use gatespan::upstream::fastcgi::{Forwarder, Multiplexed, ProgramConfig, Programs};
use gatespan::upstream::files::Files;
use gatespan::upstream::http::Proxy;
use gatespan::upstream::site::Site;
use gatespan::upstream::{cgi, fastcgi, files, http, site};
use tokio::runtime::Runtime;

use super::builtin;

/// What all targets of a bridge have in common.
#[derive(Debug)]
pub(super) struct Settings {
    /// How scripts are run; each target adds where they are.
    pub(super) cgi: cgi::Config,
    /// Those that were opened, which have to be waited for at the end.
    pub(super) hosts: RefCell<Vec<Arc<cgi::Host>>>,
    pub(super) fastcgi: fastcgi::Config,
    /// What FastCGI servers are told besides, or in the place of, what the request says.
    pub(super) params: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many requests share a connection to a FastCGI server.
    pub(super) multiplex: Option<u16>,
    /// How FastCGI programs are kept running, where there are such; each target adds which.
    pub(super) program: Option<ProgramConfig>,
    pub(super) http: http::Config,
    pub(super) files: files::Config,
    pub(super) site: site::Config,
    pub(super) running: Running,
}

impl Settings {
    fn fastcgi(&self, beside: &Beside<'_>) -> fastcgi::Config {
        let mut config = self.fastcgi.clone();
        if beside.is_asked {
            // It is asked to be an authorizer, whatever those are that answer.
            config.role = None;
        }
        config
    }
}

/// The FastCGI programs that run behind a bridge, and the runtime of their own that watches over them: they are there before the
/// gateway's runtime is, and end after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Running(Arc<Mutex<Option<(Runtime, Vec<Programs>)>>>);

/// How long killing them may take before the process ends without having waited for them.
const KILLED_WITHIN: Duration = Duration::from_secs(2);

impl Running {
    fn start(&self, program: ProgramConfig, config: fastcgi::Config) -> anyhow::Result<Forwarder> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("gatespan-programs")
                .enable_all()
                .build()
                .context("the runtime that watches over programs could not be started")?;
            *running = Some((runtime, Vec::new()));
        }
        let (runtime, all) = running.as_mut().context("it was made just now")?;
        let _entered = runtime.enter();
        let programs = Programs::start(program, config)?;
        let forwarder = programs.forwarder().clone();
        all.push(programs);
        Ok(forwarder)
    }

    /// Ends the programs at once.
    pub(super) fn kill(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((runtime, all)) = running {
            // On a thread that may wait; what watches over a process kills it when it is dropped.
            let killed = std::thread::spawn(move || {
                runtime.shutdown_timeout(KILLED_WITHIN);
                drop(all);
            });
            let _ = killed.join();
        }
    }

    /// Ends the programs, and waits for that.
    pub(super) fn shutdown(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((runtime, all)) = running {
            runtime.block_on(async {
                let ends: Vec<_> = all.into_iter().map(|programs| tokio::spawn(programs.shutdown())).collect();
                for end in ends {
                    // One that panicked has ended as well.
                    let _ = end.await;
                }
            });
        }
    }
}

/// Where requests can be sent.
pub(crate) fn parse(text: &str) -> Result<Address, String> {
    let address: Address = text.parse().map_err(|error| match error {
        AddressError::NoScheme(_) | AddressError::UnknownScheme(_) => expected(text),
        error => error.to_string(),
    })?;
    match &address {
        Address::App(name) if builtin::find(name).is_some() => Ok(address),
        Address::App(name) => {
            let names = builtin::NAMES.map(|(name, _)| format!("app:{name}"));
            Err(format!("expected one of {}, got \"app:{name}\"", names.join(", ")))
        }
        Address::Http(Endpoint::Inherited) | Address::FastCgi(Endpoint::Inherited) => Err(format!(
            "expected where requests go, got \"{text}\": a socket that was handed over is one to listen on"
        )),
        Address::Http(Endpoint::Tcp { port: 0, .. })
        | Address::Https(Endpoint::Tcp { port: 0, .. })
        | Address::FastCgi(Endpoint::Tcp { port: 0, .. }) => {
            Err(format!("expected the port that a server listens on, got \"{text}\""))
        }
        Address::CgiProcess => Err(expected(text)),
        _ => Ok(address),
    }
}

fn expected(text: &str) -> String {
    format!(
        "expected what answers, such as cgi:/FOLDER/, fastcgi:/SOCKET, http://HOST:PORT, file:/FOLDER or app:NAME, got \"{text}\""
    )
}

/// What a target is besides its address.
#[derive(Debug, Clone, Default)]
pub(super) struct Beside<'a> {
    /// Further FastCGI servers.
    pub(super) also: &'a [Endpoint],
    /// The folder of the site whose scripts a FastCGI server runs; without, requests are passed on as they come.
    pub(super) root: Option<&'a Path>,
    /// Further folders of CGI programs.
    pub(super) script_roots: Vec<PathBuf>,
    /// It is asked about requests and does not answer them.
    pub(super) is_asked: bool,
}

/// The application at an address.
pub(super) fn open(address: &Address, beside: Beside<'_>, settings: &Settings) -> anyhow::Result<AnyApplication> {
    let opened = match address {
        Address::App(name) => builtin::find(name).context("it was checked"),
        Address::Cgi(path) => scripts(path, beside.script_roots, settings).map(|host| {
            let host = Arc::new(host);
            settings.hosts.borrow_mut().push(host.clone());
            AnyApplication::new(host)
        }),
        Address::FastCgi(endpoint) => servers(endpoint, beside, settings),
        Address::FastCgiProgram(path) => program(path, beside, settings),
        Address::Http(_) | Address::Https(_) => {
            Proxy::new(address, settings.http.clone()).map(AnyApplication::new).map_err(Into::into)
        }
        Address::File(path) => folder(path, settings),
        other => anyhow::bail!("expected a target, got {other}"),
    };
    opened.with_context(|| format!("{address} can't be served"))
}

/// What it is on disk decides: a folder of scripts, or one program for all requests.
fn scripts(path: &Path, further: Vec<PathBuf>, settings: &Settings) -> anyhow::Result<cgi::Host> {
    let mut config = settings.cgi.clone();
    config.roots = further;
    // One that is to be a folder and is missing is a missing folder, and no missing program.
    if path.is_dir() || path.as_os_str().as_bytes().ends_with(b"/") {
        config.roots.insert(0, path.into());
    } else {
        config.program = Some(std::path::absolute(path)?);
    }
    Ok(cgi::Host::new(config)?)
}

fn servers(endpoint: &Endpoint, beside: Beside<'_>, settings: &Settings) -> anyhow::Result<AnyApplication> {
    let all = std::iter::once(endpoint).chain(beside.also).cloned();
    let config = settings.fastcgi(&beside);
    match settings.multiplex {
        None => in_site(Forwarder::new(all, config)?, beside, settings),
        Some(limit) => {
            let shared = all.map(|endpoint| (endpoint.to_string(), Multiplexed::new(endpoint, limit)));
            in_site(Forwarder::with_connectors(shared, config)?, beside, settings)
        }
    }
}

fn program(path: &Path, beside: Beside<'_>, settings: &Settings) -> anyhow::Result<AnyApplication> {
    let config = settings.program.clone().context("a program was not expected")?;
    let program = ProgramConfig { program: path.into(), ..config };
    in_site(settings.running.start(program, settings.fastcgi(&beside))?, beside, settings)
}

/// With params of one's own, and with its files beside it, where it runs the scripts of a site.
fn in_site(servers: impl Application, beside: Beside<'_>, settings: &Settings) -> anyhow::Result<AnyApplication> {
    let scripts = match &*settings.params {
        [] => AnyApplication::new(servers),
        params => AnyApplication::new(variables(servers, params.iter().cloned())?),
    };
    let Some(root) = beside.root else { return Ok(scripts) };
    // Which file a folder stands for is the site's affair.
    let files = Files::new(root, files::Config { listing: false, ..settings.files.clone() })?;
    Ok(AnyApplication::new(Site::new(root, scripts, files, settings.site.clone())?))
}

fn folder(path: &PathBuf, settings: &Settings) -> anyhow::Result<AnyApplication> {
    Ok(AnyApplication::new(Files::new(path, settings.files.clone())?))
}
