//! The options of sites and folders of files, and the upstreams' settings that are made of them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gatespan::upstream::files::Coding;
use gatespan::upstream::site::{Pattern, TryFiles};
use gatespan::upstream::{files, site};

use super::servers::RoleAsked;
use super::set;
use crate::bridge::Arguments;

#[derive(Debug, Args)]
#[command(next_help_heading = "Sites (fastcgi: with --root) and folders (file:)")]
pub(crate) struct Sites {
    /// What a path stands for that is no script's: a list of $uri, $uri/, and as the last one a status or a path [default: "$uri $uri/ =404"]
    #[arg(long, value_name = "LIST")]
    pub(crate) try_files: Option<TryFiles>,
    /// Answer paths that fit with 403; * and ? stand for any letters, and without a slash at its beginning it fits at any depth. May be repeated
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    pub(crate) deny: Vec<Pattern>,
    /// The ending of scripts' names, in the place of .php: unless that is named as well, its files are given out as they are. May be repeated
    /// [default: .php]
    #[arg(long = "script-ending", value_name = ".ENDING", value_parser = parse_ending)]
    pub(crate) script_endings: Vec<String>,
    /// Where --root is for the FastCGI server, such as one in a container [default: where it is here]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) script_root: Option<PathBuf>,
    /// Answer for a folder without an index with a list of what is in it (file:)
    #[arg(long)]
    pub(crate) listing: bool,
    /// Follow links out of the folder, as most web servers do
    #[arg(long)]
    pub(crate) follow_links: bool,
    /// Send FILE.br, FILE.zst or FILE.gz in the place of FILE to clients that take it. May be repeated [default: never]
    #[arg(long, value_name = "CODING", value_enum)]
    pub(crate) precompressed: Vec<Precompressed>,
    /// What files say of how long they may be cached [default: nothing]
    #[arg(long, value_name = "VALUE")]
    pub(crate) cache_control: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precompressed {
    Br,
    Zstd,
    Gzip,
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

impl Arguments {
    pub(crate) fn files_config(&self) -> anyhow::Result<files::Config> {
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

    pub(crate) fn site_config(&self) -> anyhow::Result<site::Config> {
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
        config.filter = self.servers.role == Some(RoleAsked::Filter);
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
