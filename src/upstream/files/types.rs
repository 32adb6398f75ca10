//! Media types by the ending of a file's name.

use super::Config;

/// The type of the file of that name.
pub(super) fn of(name: &[u8], config: &Config) -> String {
    let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let ending = last.iter().rposition(|byte| *byte == b'.').map(|dot| last[dot + 1..].to_ascii_lowercase());
    let Some(ending) = ending.and_then(|ending| String::from_utf8(ending).ok()) else {
        return config.default_type.clone();
    };
    if let Some((_, own)) = config.types.iter().find(|(of, _)| *of == ending) {
        return own.clone();
    }
    match TYPES.iter().find(|(_, endings)| endings.split(' ').any(|of| of == ending)) {
        // Without it a browser guesses, and old ones guessed wrong on purpose.
        Some((known, _)) if known.starts_with("text/") => format!("{known}; charset=utf-8"),
        Some((known, _)) => (*known).to_owned(),
        None => config.default_type.clone(),
    }
}

/// What the web is made of, as the registry of media types has it.
const TYPES: [(&str, &str); 71] = [
    ("text/html", "html htm"),
    ("text/css", "css"),
    ("text/javascript", "js mjs"),
    ("application/json", "json map"),
    ("image/png", "png"),
    ("image/jpeg", "jpg jpeg jpe jfif"),
    ("image/svg+xml", "svg svgz"),
    ("image/webp", "webp"),
    ("image/gif", "gif"),
    ("image/avif", "avif"),
    ("image/vnd.microsoft.icon", "ico"),
    ("font/woff2", "woff2"),
    ("font/woff", "woff"),
    ("font/ttf", "ttf"),
    ("font/otf", "otf"),
    ("text/plain", "txt text log conf ini"),
    ("application/xml", "xml xsl xsd"),
    ("application/pdf", "pdf"),
    ("application/wasm", "wasm"),
    ("application/manifest+json", "webmanifest"),
    ("application/xhtml+xml", "xhtml xht"),
    ("application/atom+xml", "atom"),
    ("application/rss+xml", "rss"),
    ("application/ld+json", "jsonld"),
    ("application/geo+json", "geojson"),
    ("text/markdown", "md markdown"),
    ("text/csv", "csv"),
    ("text/tab-separated-values", "tsv"),
    ("text/calendar", "ics"),
    ("text/vcard", "vcf"),
    ("text/vtt", "vtt"),
    ("application/yaml", "yaml yml"),
    ("application/toml", "toml"),
    ("image/bmp", "bmp"),
    ("image/tiff", "tif tiff"),
    ("image/heic", "heic"),
    ("image/jxl", "jxl"),
    ("image/apng", "apng"),
    ("audio/mpeg", "mp3"),
    ("audio/mp4", "m4a"),
    ("audio/ogg", "ogg oga opus"),
    ("audio/wav", "wav"),
    ("audio/flac", "flac"),
    ("audio/aac", "aac"),
    ("audio/midi", "mid midi"),
    ("video/mp4", "mp4 m4v"),
    ("video/webm", "webm"),
    ("video/ogg", "ogv"),
    ("video/mpeg", "mpg mpeg"),
    ("video/quicktime", "mov"),
    ("video/x-matroska", "mkv"),
    ("video/mp2t", "ts"),
    ("application/vnd.apple.mpegurl", "m3u8"),
    ("application/zip", "zip"),
    ("application/gzip", "gz tgz"),
    ("application/zstd", "zst"),
    ("application/x-bzip2", "bz2"),
    ("application/x-xz", "xz"),
    ("application/x-tar", "tar"),
    ("application/x-7z-compressed", "7z"),
    ("application/vnd.rar", "rar"),
    ("application/epub+zip", "epub"),
    ("application/rtf", "rtf"),
    ("application/msword", "doc"),
    ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx"),
    ("application/vnd.ms-excel", "xls"),
    ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx"),
    ("application/vnd.ms-powerpoint", "ppt"),
    ("application/vnd.openxmlformats-officedocument.presentationml.presentation", "pptx"),
    ("application/vnd.oasis.opendocument.text", "odt"),
    ("application/vnd.oasis.opendocument.spreadsheet", "ods"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_comes_from_the_ending_and_from_nothing_else() {
        let config =
            Config { types: vec![("odd".into(), "x/odd".into()), ("css".into(), "x/css".into())], ..Config::default() };
        for (name, expected) in [
            ("a/index.html", "text/html; charset=utf-8"),
            ("A.PNG", "image/png"),
            ("a.tar.gz", "application/gzip"),
            ("a.odd", "x/odd"),
            ("a.css", "x/css"),
            ("html", "application/octet-stream"),
            ("a.b/html", "application/octet-stream"),
            ("a.", "application/octet-stream"),
            ("a.unknown", "application/octet-stream"),
        ] {
            assert_eq!(of(name.as_bytes(), &config), expected, "{name}");
        }
        assert_eq!(of(b"a.\xff", &config), "application/octet-stream");
    }

    #[test]
    fn no_ending_has_two_types() {
        let mut endings: Vec<_> = TYPES.iter().flat_map(|(_, endings)| endings.split(' ')).collect();
        let count = endings.len();
        endings.sort_unstable();
        endings.dedup();
        assert_eq!(endings.len(), count);
    }
}
