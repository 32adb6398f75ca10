//! The way of a request through the bridge, put together before anything listens: request id, client, access log, local redirects, what is asked
//! first, files that are sent by name, routes, and at its end the targets.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use gatespan::address::Address;
use gatespan::application::AnyApplication;
use gatespan::middleware::{
    AuthorizerConfig, Format, Mount, Redirects, SendFileRoots, access_log, authorizer, client_address, local_redirect,
    request_id, send_file, to_writer,
};
use gatespan::upstream::cgi;
use gatespan::upstream::cgi::spawn::close_on_exec_all;
use gatespan::upstream::cgi::watcher::Watcher;

use super::Arguments;
use super::log_file::LogFile;
use super::options::OnOff;
use super::options::scripts::Files;
use super::target::{self, Beside, Settings};
use super::told::told;
use crate::logging::Form;

/// What is there before anything listens.
pub(super) struct Prepared {
    pub(super) application: AnyApplication,
    /// The file of the access log.
    pub(super) log: Option<LogFile>,
    pub(super) hosts: Vec<Arc<cgi::Host>>,
}

/// What is to be done before there is a thread that answers requests.
pub(super) fn prepare(arguments: &Arguments, form: Form, running: &target::Running) -> anyhow::Result<Prepared> {
    arguments.check()?;
    arguments.check_effects()?;
    let has_scripts = arguments.targets().any(|to| matches!(to, Address::Cgi(_)));
    let has_programs = arguments.targets().any(|to| matches!(to, Address::FastCgiProgram(_)));
    let mut config = arguments.cgi_config()?;
    let as_root = rustix::process::geteuid().is_root() && config.identity.is_none();
    if has_scripts || has_programs {
        // What whoever started this process left open is not for scripts.
        close_on_exec_all()
            .context("the descriptors that this process was started with could not be kept from scripts")?;
    }
    if has_scripts {
        config.watcher = Some(Watcher::start().context("the process that watches over scripts could not be started")?);
    }
    let settings = target::Settings {
        cgi: config,
        fastcgi: arguments.fastcgi_config(),
        multiplex: arguments.servers.multiplex,
        program: arguments.program_config(),
        http: arguments.http_config(),
        files: arguments.files_config()?,
        site: arguments.site_config()?,
        running: running.clone(),
        hosts: RefCell::default(),
    };
    let mut application = arguments.open_all(&settings)?;
    if has_scripts && as_root && arguments.from != Address::CgiProcess {
        tracing::warn!("scripts run as root, which few of them need: name somebody else with --user");
    }
    let Files { send_file_roots, accel_roots } = &arguments.files;
    if !send_file_roots.is_empty() || !accel_roots.is_empty() {
        let roots = SendFileRoots { files: send_file_roots.clone(), accel: accel_roots.clone() };
        application = AnyApplication::new(send_file(application, &roots)?);
    }
    for (_, to) in arguments.clients.authorizers.iter().filter(|(prefix, _)| prefix.is_none()) {
        application = asking_first(application, to, &settings)?;
    }
    let redirects = Redirects { max: arguments.max_redirects, mount: arguments.mount() };
    application = AnyApplication::new(local_redirect(application, redirects));
    let log = match &arguments.log.access_log {
        None => None,
        Some(path) => {
            let log = LogFile::open(path)
                .with_context(|| format!("{}: the access log could not be opened", path.display()))?;
            let format = match form {
                Form::Text => Format::Traced,
                Form::Json => Format::Json,
            };
            application = AnyApplication::new(access_log(application, format, to_writer(log.clone())));
            Some(log)
        }
    };
    if let Some(config) = arguments.clients.client_address() {
        application = AnyApplication::new(client_address(application, config));
    }
    let named = request_id(told(application));
    let named = match arguments.log.request_id {
        OnOff::On => named,
        OnOff::Off => named.without_response_header(),
    };
    Ok(Prepared { application: AnyApplication::new(named), log, hosts: settings.hosts.into_inner() })
}

/// The application, behind an authorizer.
fn asking_first(application: AnyApplication, to: &Address, settings: &Settings) -> anyhow::Result<AnyApplication> {
    let asked = target::open(to, Beside::default(), settings)?;
    Ok(AnyApplication::new(authorizer(application, asked, AuthorizerConfig::default())))
}

impl Arguments {
    /// TO, and the routes in front of it.
    fn open_all(&self, settings: &Settings) -> anyhow::Result<AnyApplication> {
        let root = self.site_root();
        let is_served = |to: &Address| matches!(to, Address::FastCgi(_) | Address::FastCgiProgram(_));
        let beside = Beside { also: &self.servers.also, root: root.filter(|_| is_served(&self.to)) };
        let application = target::open(&self.to, beside, settings)?;
        if self.routes.is_empty() {
            return Ok(application);
        }
        let mut mount = Mount::new().fallback(application);
        for (prefix, to) in &self.routes {
            let root = root.filter(|_| is_served(to) && !is_served(&self.to));
            let mut application = target::open(to, Beside { also: &[], root }, settings)?;
            for (_, to) in self.clients.authorizers.iter().filter(|(at, _)| at.as_ref() == Some(prefix)) {
                application = asking_first(application, to, settings)?;
            }
            mount = mount.at(prefix, application);
        }
        Ok(AnyApplication::new(mount))
    }

    /// The folder of a site, where --root is one: TO says which it is, and if TO takes none, the routes do.
    pub(super) fn site_root(&self) -> Option<&Path> {
        let routes = || self.routes.iter().map(|(_, to)| to);
        let is_site = match &self.to {
            Address::FastCgi(_) | Address::FastCgiProgram(_) => true,
            Address::Cgi(_) => false,
            _ => {
                !routes().any(|to| matches!(to, Address::Cgi(_)))
                    && routes().any(|to| matches!(to, Address::FastCgi(_) | Address::FastCgiProgram(_)))
            }
        };
        self.scripts.roots.first().filter(|_| is_site).map(PathBuf::as_path)
    }

    /// What is SCRIPT_NAME for the application as a whole, where that is known.
    fn mount(&self) -> Option<Vec<u8>> {
        match (&self.from, &self.script_name) {
            (_, Some(prefix)) => Some(prefix.clone().into_bytes()),
            // A web server may say there which script it has found.
            (Address::FastCgi(_), None) => Some(Vec::new()),
            _ => None,
        }
    }
}
