//! The list of a folder, as a page.

use std::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, statat};

use crate::application::{Error, encode_path};

/// The page of that open folder, whose path the client sees. Folders come first, all sorted by their bytes; hidden names are left out, and
/// links are named without a look at where they lead.
pub(super) async fn page(folder: OwnedFd, path: Vec<u8>, limit: usize) -> Result<String, Error> {
    let read = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
        let mut names = Vec::new();
        let mut is_whole = true;
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") && name.to_bytes() != b".well-known" {
                continue;
            }
            if names.len() == limit {
                is_whole = false;
                break;
            }
            names.push((!is_folder(&folder, entry.file_type(), name), name.to_bytes().to_vec()));
        }
        names.sort_unstable();
        Ok(html(&path, &names, is_whole))
    });
    Ok(read.await??)
}

fn is_folder(folder: &OwnedFd, file_type: FileType, name: &CStr) -> bool {
    match file_type {
        FileType::Directory => true,
        // Some file systems don't say it with the name.
        FileType::Unknown | FileType::Symlink => statat(folder, name, AtFlags::empty())
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        _ => false,
    }
}

fn html(path: &[u8], names: &[(bool, Vec<u8>)], is_whole: bool) -> String {
    let title = escape(&String::from_utf8_lossy(path));
    let mut page = format!(
        "<!DOCTYPE html>\n<html>\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n<ul>\n"
    );
    if path != b"/" {
        page.push_str("<li><a href=\"../\">../</a></li>\n");
    }
    for (is_file, name) in names {
        let slash = if *is_file { "" } else { "/" };
        // `./` keeps a name with a colon from being read as a scheme (RFC 3986 4.2).
        let (link, text) = (encode_path(name), String::from_utf8_lossy(name));
        page.push_str(&format!("<li><a href=\"./{}{slash}\">{}{slash}</a></li>\n", escape(&link), escape(&text)));
    }
    page.push_str("</ul>\n");
    if !is_whole {
        page.push_str(&format!("<p>There is more: these are {} names.</p>\n", names.len()));
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_and_never_markup() {
        let names = [
            (false, b"a b".to_vec()),
            (true, b"<script>\"'&".to_vec()),
            (true, b"javascript:x".to_vec()),
            (true, b"\xff?#%".to_vec()),
        ];
        let page = html(b"/<i>/", &names, false);
        for part in [
            "<h1>/&lt;i&gt;/</h1>",
            "<li><a href=\"./a%20b/\">a b/</a></li>",
            "<li><a href=\"./%3Cscript%3E%22&#39;&amp;\">&lt;script&gt;&quot;&#39;&amp;</a></li>",
            "<a href=\"./javascript:x\">",
            "<a href=\"./%FF%3F%23%25\">\u{fffd}?#%</a>",
            "these are 4 names",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(!html(b"/", &[], true).contains("../"));
    }
}
