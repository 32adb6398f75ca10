//! A site of scripts and files in one folder, as PHP is run: which script a request is for, what the script is told of itself, and
//! which requests are for files.
//!
//! It stands before two applications: one that runs scripts, such as a FastCGI server's, and one for the files, such as
//! [`Files`](super::files::Files) of the same folder. A request is for a script when its path, or a part of it from the left that ends at a slash,
//! ends in `.php` and is a regular file below the folder; what follows is PATH_INFO. The ending is compared byte by byte, ASCII letters
//! in either case, so that nothing is ever given out as a file that the script's runtime might run. For all other paths
//! [`TryFiles`] says what they stand for.
//!
//! | style | `try_files` |
//! | --- | --- |
//! | files and scripts only | `$uri $uri/ =404` |
//! | WordPress | `$uri $uri/ /index.php?$args` |
//! | Laravel | `$uri $uri/ /index.php?$query_string` |
//! | Symfony | `$uri /index.php$is_args$args` |
//! | Drupal | `$uri $uri/ /index.php?q=$uri&$args` |
//!
//! All variables that say which script runs are this module's own: whatever a client or a web server in front said is replaced.

mod pattern;
mod try_files;

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub use super::root::{Links, LookupError, RootError};
pub use pattern::Pattern;
pub use try_files::{TryFiles, TryFilesError};

use super::root::{DEFAULT_MAX_PATH, Found, Kind, Relative, Root, path_of};
use crate::application::driver::error_page;
use crate::application::{
    Application, Body, DEFAULT_BLOCK_SIZE, Environ, Error, FileRange, Input, StartResponse, encode_path,
};
use crate::protocol::cgi::names;
use try_files::{Step, Substituted};

/// SERVER_SOFTWARE, where the gateway says none.
const SERVER_SOFTWARE: &str = concat!("gatespan/", env!("CARGO_PKG_VERSION"));

/// How the paths of a site are mapped.
#[derive(Debug, Clone)]
pub struct Config {
    /// The names that are looked for in a folder, in this order. Default: `index.php`, `index.html`.
    pub index: Vec<String>,
    /// With which endings names are scripts'. Default: `.php`.
    pub endings: Vec<String>,
    /// What a path stands for that is no script's. Default: `$uri $uri/ =404`.
    pub try_files: TryFiles,
    /// Paths that are answered with 403, whatever is there. Default: none.
    pub deny: Vec<Pattern>,
    /// Where the folder is for whoever runs the scripts, such as a FastCGI server in a container. Default: where it is for this process.
    pub script_root: Option<PathBuf>,
    /// Whether the scripts are files for a FastCGI Filter: whoever runs them gets the file itself as well, with FCGI_DATA_LENGTH and
    /// FCGI_DATA_LAST_MOD (FastCGI 6.4). Default: false.
    pub filter: bool,
    /// What is done about links. Default: followed within the folder.
    pub links: Links,
    /// The longest path, decoded, in bytes. Over it is 414. Default: 4,096.
    pub max_path: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            index: vec!["index.php".into(), "index.html".into()],
            endings: vec![".php".into()],
            try_files: TryFiles::default(),
            deny: Vec::new(),
            script_root: None,
            filter: false,
            links: Links::default(),
            max_path: DEFAULT_MAX_PATH,
        }
    }
}

/// A folder of scripts and files as an application. Cheap to clone.
///
/// ```no_run
/// use gatespan::upstream::files::{self, Files};
/// use gatespan::upstream::site::{Config, Site};
/// # use gatespan::{Body, Environ, Error, StartResponse};
/// # async fn scripts(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let files = Files::new("/srv/blog", files::Config::default())?;
/// let config = Config { try_files: "$uri $uri/ /index.php?$args".parse()?, ..Config::default() };
/// let blog = Site::new("/srv/blog", scripts, files, config)?;
/// # Ok(()) }
/// ```
pub struct Site<S, F> {
    shared: Arc<Shared<S, F>>,
}

struct Shared<S, F> {
    root: Root,
    script_root: PathBuf,
    scripts: S,
    files: F,
    config: Config,
}

impl<S: Application, F: Application> Site<S, F> {
    /// The site in that folder, whose scripts and files these two applications answer for.
    ///
    /// # Errors
    ///
    /// When it is no folder, or can't be opened.
    pub fn new(root: impl Into<PathBuf>, scripts: S, files: F, config: Config) -> Result<Self, RootError> {
        let root = Root::new(&root.into(), config.links)?;
        let script_root = config.script_root.clone().unwrap_or_else(|| root.path().to_owned());
        Ok(Self { shared: Arc::new(Shared { root, script_root, scripts, files, config }) })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        self.shared.root.path()
    }
}

impl<S: Application, F: Application> Application for Site<S, F> {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let site = &*self.shared;
        let place = match site.find(&environ).await {
            Ok(place) => place,
            // What is missing is no failure that anybody's log should fill with.
            Err(LookupError::Missing | LookupError::Hidden(_)) => Place::Status(404),
            Err(error) => return Err(error.into_error()),
        };
        match place {
            Place::Script { mounted_at, script, path_info, query } => {
                site.describe(&mut environ, &mounted_at, &script, &path_info, query)?;
                if site.config.filter {
                    environ = site.with_file(environ, &script).await?;
                }
                site.scripts.call(environ, start_response).await
            }
            Place::File { mounted_at, file } => {
                environ.set(names::SCRIPT_NAME, mounted_at)?;
                environ.set(names::PATH_INFO, file.absolute())?;
                site.files.call(environ, start_response).await
            }
            Place::Redirect(location) => {
                start_response.start("301 Moved Permanently", [("Location", location)])?;
                Ok(Body::empty())
            }
            Place::Status(status) => {
                error_page(status, environ.request_id(), environ.method() == b"HEAD").pass_on(&start_response)
            }
        }
    }
}

/// What a request is for.
enum Place {
    Script {
        mounted_at: Vec<u8>,
        script: Relative,
        path_info: Vec<u8>,
        /// In the place of the request's own.
        query: Option<Vec<u8>>,
    },
    File {
        mounted_at: Vec<u8>,
        file: Relative,
    },
    Redirect(String),
    Status(u16),
}

impl<S, F> Shared<S, F> {
    async fn find(&self, environ: &Environ) -> Result<Place, LookupError> {
        let (mounted_at, path) = path_of(environ);
        let mounted_at = mounted_at.to_vec();
        // Names with a dot are refused where they are files'; as PATH_INFO and for a front controller they are the script's affair.
        let whole = Relative::with_hidden(path, self.config.max_path)?;
        if self.is_denied(&whole) {
            return Ok(Place::Status(403));
        }
        if let Some(place) = self.script(&mounted_at, path, None).await? {
            return Ok(place);
        }
        let query = environ.query_string();
        for step in self.config.try_files.steps() {
            match step {
                Step::File(pattern) => {
                    let Substituted { path: candidate, .. } = pattern.substitute(&whole.absolute(), query);
                    let Some(file) = visible(&candidate, self.config.max_path)? else { continue };
                    if !file.is_folder() && self.root.kind(&file).await? == Kind::File {
                        return Ok(self.file_or_script(mounted_at, file));
                    }
                }
                Step::Folder(pattern) => {
                    let Substituted { path: candidate, .. } = pattern.substitute(&whole.absolute(), query);
                    let Some(folder) = visible(&candidate, self.config.max_path)? else { continue };
                    if self.root.kind(&folder).await? != Kind::Folder {
                        continue;
                    }
                    if !path.ends_with(b"/") && folder.bytes() == whole.bytes() {
                        return Ok(Place::Redirect(with_slash(&mounted_at, &whole, query)));
                    }
                    if let Some(index) = self.index(&folder).await? {
                        return Ok(self.file_or_script(mounted_at, index));
                    }
                }
                Step::Status(status) => return Ok(Place::Status(*status)),
                Step::Fallback(pattern) => {
                    let Substituted { path, query } = pattern.substitute(&whole.absolute(), query);
                    if self.is_denied(&Relative::with_hidden(&path, self.config.max_path)?) {
                        return Ok(Place::Status(403));
                    }
                    if let Some(place) = self.script(&mounted_at, &path, query).await? {
                        return Ok(place);
                    }
                    let file = Relative::new(&path, self.config.max_path)?;
                    return match self.root.kind(&file).await? {
                        Kind::File => Ok(Place::File { mounted_at, file }),
                        Kind::Folder | Kind::Missing => Ok(Place::Status(404)),
                    };
                }
            }
        }
        Ok(Place::Status(404))
    }

    /// The script that a path names, if it names one.
    async fn script(
        &self,
        mounted_at: &[u8],
        path: &[u8],
        query: Option<Vec<u8>>,
    ) -> Result<Option<Place>, LookupError> {
        let ends = (0..=path.len()).filter(|at| path.get(*at).is_none_or(|byte| *byte == b'/'));
        for end in ends {
            let (name, path_info) = path.split_at(end);
            if !self.is_script(name) {
                continue;
            }
            let Some(script) = visible(name, self.config.max_path)? else { return Ok(None) };
            match self.root.kind(&script).await? {
                Kind::File => {
                    let (mounted_at, path_info) = (mounted_at.to_vec(), path_info.to_vec());
                    return Ok(Some(Place::Script { mounted_at, script, path_info, query }));
                }
                Kind::Folder => {}
                // Nothing lies below what is not there.
                Kind::Missing => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether a path's last name is that of a script: bytes, of which only ASCII letters have a case (CVE-2026-24895, CVE-2026-45062).
    fn is_script(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.config.endings.iter().any(|ending| {
            let start = name.len().checked_sub(ending.len()).filter(|start| *start > 0);
            start.is_some_and(|start| name[start..].eq_ignore_ascii_case(ending.as_bytes()))
        })
    }

    fn file_or_script(&self, mounted_at: Vec<u8>, file: Relative) -> Place {
        match () {
            () if self.is_denied(&file) => Place::Status(403),
            () if self.is_script(file.bytes()) => {
                Place::Script { mounted_at, script: file, path_info: Vec::new(), query: None }
            }
            () => Place::File { mounted_at, file },
        }
    }

    async fn index(&self, folder: &Relative) -> Result<Option<Relative>, LookupError> {
        for name in &self.config.index {
            let index = folder.join(name.as_bytes());
            if self.root.kind(&index).await? == Kind::File {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    fn is_denied(&self, path: &Relative) -> bool {
        if self.config.deny.is_empty() {
            return false;
        }
        let path = path.absolute();
        self.config.deny.iter().any(|pattern| pattern.matches(&path))
    }

    /// Adds what a Filter is to filter.
    async fn with_file(&self, mut environ: Environ, script: &Relative) -> Result<Environ, Error> {
        let Found::File(file, metadata) = self.root.find(script).await.map_err(LookupError::into_error)? else {
            return Err(LookupError::Missing.into_error());
        };
        let since_1970 = metadata.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        environ.set("FCGI_DATA_LENGTH", metadata.len().to_string())?;
        environ.set("FCGI_DATA_LAST_MOD", since_1970.unwrap_or_default().as_secs().to_string())?;
        let range = FileRange { file: Arc::new(file), offset: 0, len: metadata.len(), block_size: DEFAULT_BLOCK_SIZE };
        Ok(environ.with_data(Input::from_file(range)))
    }

    /// Tells the script who it is, in the words that php-fpm and php-cgi listen to.
    fn describe(
        &self,
        environ: &mut Environ,
        mounted_at: &[u8],
        script: &Relative,
        path_info: &[u8],
        query: Option<Vec<u8>>,
    ) -> Result<(), Error> {
        // Both are set even where they stay the same: a web server may have sent them more than once. A request without a target has it put
        // together from the parts before they change.
        let request_uri = environ.target().into_owned();
        let query = query.or_else(|| environ.variables().get(names::QUERY_STRING.as_bytes()).map(<[u8]>::to_vec));
        let script = script.absolute();
        let root = self.script_root.as_os_str().as_bytes();
        // Scripts put a slash and a name behind it.
        let root = root.strip_suffix(b"/").unwrap_or(root);
        let script_filename = [root, &script].concat();
        let script_name = [mounted_at, &script].concat();
        let document_uri = [&script_name, path_info].concat();
        let path_translated = [root, path_info].concat();
        let mut told: Vec<(&str, &[u8])> = Vec::with_capacity(12);
        told.extend([
            (names::SCRIPT_FILENAME, &*script_filename),
            (names::DOCUMENT_ROOT, if root.is_empty() { b"/" } else { root }),
            (names::SCRIPT_NAME, &script_name),
            (names::PATH_INFO, path_info),
            ("DOCUMENT_URI", &document_uri),
            (names::GATEWAY_INTERFACE, b"CGI/1.1"),
            // php-cgi runs nothing without it: it is how it knows that a web server has chosen the script.
            ("REDIRECT_STATUS", b"200"),
            (names::REQUEST_URI, &request_uri),
            (names::QUERY_STRING, query.as_deref().unwrap_or_default()),
        ]);
        let variables = environ.variables_mut();
        match path_info {
            [] => variables.remove(names::PATH_TRANSLATED),
            _ => told.push((names::PATH_TRANSLATED, &path_translated)),
        }
        let is_missing = |name: &str| variables.get(name.as_bytes()).is_none_or(<[u8]>::is_empty);
        for (name, usual) in [(names::SERVER_SOFTWARE, SERVER_SOFTWARE), (names::SERVER_PROTOCOL, "HTTP/1.1")] {
            if is_missing(name) {
                told.push((name, usual.as_bytes()));
            }
        }
        variables.set_all(told.iter().copied())?;
        // To PHP an HTTPS that is set and empty is one more thing to trip over.
        if variables.get(names::HTTPS.as_bytes()).is_some_and(<[u8]>::is_empty) {
            variables.remove(names::HTTPS);
        }
        Ok(())
    }
}

/// A path that may be a file's; none where a name on it is hidden, or it became too long.
fn visible(path: &[u8], limit: usize) -> Result<Option<Relative>, LookupError> {
    match Relative::new(path, limit) {
        Ok(path) => Ok(Some(path)),
        Err(LookupError::Hidden(_) | LookupError::TooLong { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn with_slash(mounted_at: &[u8], folder: &Relative, query: &[u8]) -> String {
    let path = [mounted_at, &folder.absolute(), b"/"].concat();
    // Two slashes would begin the name of another host (RFC 3986 4.2).
    let mut location = format!("/{}", encode_path(&path).trim_start_matches('/'));
    if !query.is_empty() {
        location.push('?');
        location.push_str(&String::from_utf8_lossy(query));
    }
    location
}

impl<S, F> Clone for Site<S, F> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S, F> fmt::Debug for Site<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("root", &self.shared.root)
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}
