//! Imports run one way: core <- table <- io <- runtime; `control` holds messages alone. Core and table are pure, and `unsafe`
//! is for `src/io` and the crate of the ublk target.
//!
//! Works on words of the source, with comments and literals taken out and `use` groups written out. It does not see what a
//! macro of another crate expands to, nor an import that is renamed outside of the file.

use std::fs;
use std::path::{Path, PathBuf};

/// Each layer of the library, and those that it may import.
const LAYERS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("table", &["core"]),
    ("control", &["core", "table"]),
    ("io", &["core", "table"]),
    ("runtime", &["core", "table", "io", "control"]),
];
/// Layers in which nothing may depend on the world outside.
const PURE: &[&str] = &["core", "table"];
/// What would depend on it.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::net",
    "std::process",
    "std::env",
    "std::os",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime",
    "nix",
    "libc",
    "io_uring",
];

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Colons,
    Mark(char),
}

/// The words and marks of a source, without comments, literals and lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            i = end_of_string(&chars, i);
        } else if c == '\'' {
            // A lifetime is a quote, a word and no quote.
            let is_lifetime = at(i + 1) != '\\' && at(i + 2) != '\'';
            i += 1;
            if !is_lifetime {
                while i < chars.len() && chars[i] != '\'' {
                    i += if chars[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
        } else if c.is_alphanumeric() || c == '_' {
            let start = i;
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            let word: String = chars[start..i].iter().collect();
            let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
            match (word.as_str(), at(i), at(i + hashes)) {
                ("r" | "br" | "cr", _, '"') => i = end_of_raw_string(&chars, i + hashes, hashes),
                ("b" | "c", '"', _) => i = end_of_string(&chars, i),
                _ => tokens.push(Token::Word(word)),
            }
        } else if c == ':' && at(i + 1) == ':' {
            tokens.push(Token::Colons);
            i += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(Token::Mark(c));
            }
            i += 1;
        }
    }
    tokens
}

fn end_of_string(chars: &[char], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn end_of_raw_string(chars: &[char], quote: usize, hashes: usize) -> usize {
    let mut i = quote + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// All paths with more than one word, groups written out, with `super` and `self` resolved from `module`; and single words.
fn paths(tokens: &[Token], module: &[String]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut here = module.to_vec();
    // Depth of braces at which each inline module began.
    let mut modules: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut i = 0;
    while i < tokens.len() {
        match &tokens[i] {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth -= 1;
                if modules.last() == Some(&depth) {
                    modules.pop();
                    here.pop();
                }
            }
            Token::Word(word) if word == "mod" => {
                if let (Some(Token::Word(name)), Some(Token::Mark('{'))) = (tokens.get(i + 1), tokens.get(i + 2)) {
                    here.push(name.clone());
                    modules.push(depth);
                    i += 1;
                }
            }
            Token::Word(_) => {
                i = tree(tokens, i, Vec::new(), &here, &mut paths);
                continue;
            }
            Token::Colons | Token::Mark(_) => {}
        }
        i += 1;
    }
    paths
}

/// Reads a path, or a tree of them, from `i`; returns where it ends.
fn tree(
    tokens: &[Token],
    mut i: usize,
    mut prefix: Vec<String>,
    here: &[String],
    paths: &mut Vec<Vec<String>>,
) -> usize {
    loop {
        match tokens.get(i) {
            Some(Token::Word(word)) => {
                prefix.push(word.clone());
                i += 1;
            }
            Some(Token::Mark('{')) if !prefix.is_empty() => {
                i += 1;
                while i < tokens.len() && tokens[i] != Token::Mark('}') {
                    match tokens[i] {
                        Token::Word(_) => i = tree(tokens, i, prefix.clone(), here, paths),
                        Token::Colons | Token::Mark(_) => i += 1,
                    }
                }
                return i + 1;
            }
            _ => break,
        }
        if tokens.get(i) != Some(&Token::Colons) {
            break;
        }
        i += 1;
    }
    paths.push(resolved(prefix, here));
    i
}

fn resolved(path: Vec<String>, here: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|word| *word == "super").count();
    let (base, rest) = match path[0].as_str() {
        "self" => (here, &path[1..]),
        _ if ups > 0 => (&here[..here.len().saturating_sub(ups)], &path[ups..]),
        "twinblk" => (&here[..0], &path[1..]),
        _ => return path,
    };
    let mut whole = vec!["crate".to_owned()];
    whole.extend(base.iter().filter(|word| *word != "crate").cloned());
    whole.extend(rest.iter().cloned());
    whole
}

/// What is wrong with a file, by its path in the tree.
fn violations(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |what: String| found.push(format!("{file}: {what}"));
    let in_library = file.strip_prefix("src/");
    let module: Vec<String> = in_library
        .unwrap_or_default()
        .trim_end_matches(".rs")
        .trim_end_matches("/mod")
        .split('/')
        .map(str::to_owned)
        .collect();
    let layer = in_library.and_then(|_| LAYERS.iter().find(|(name, _)| *name == module[0]));
    let paths = paths(&tokens(text), &module);
    let may_be_unsafe = file.starts_with("src/io/") || file.starts_with("ublk-target/");
    if !may_be_unsafe && paths.iter().any(|path| path.contains(&"unsafe".to_owned())) {
        say("unsafe".into());
    }
    if !file.starts_with("ublk-target/") && paths.iter().any(|path| path[0] == "libublk") {
        say("libublk".into());
    }
    if let Some((name, allowed)) = layer {
        for path in &paths {
            let is_layer = |word: &&String| LAYERS.iter().any(|(layer, _)| layer == word);
            if path[0] == "crate"
                && let Some(other) = path.get(1).filter(is_layer)
                && other != name
                && !allowed.contains(&other.as_str())
            {
                say(format!("{name} imports {other}"));
            }
            if path[0] == "crate" && path.get(1).is_some_and(|word| word == "*") {
                say("imports everything".into());
            }
            let joined = path.join("::");
            for impure in IMPURE.iter().filter(|_| PURE.contains(name)) {
                let is_it = joined == **impure || joined.starts_with(&format!("{impure}::"));
                // A single word can be anybody's name, but for a type of the clock.
                if is_it && (path.len() > 1 || *impure == "SystemTime") {
                    say(format!("{name} uses {joined}"));
                }
            }
        }
    }
    found
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.expect("the tree can be listed").path())
            .collect(),
        Err(error) => panic!("{}: {error}", dir.display()),
    };
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_tree_keeps_to_its_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tools", "ublk-target"] {
        sources(&root.join(dir), &mut files);
    }
    let mut found = Vec::new();
    let mut layers = 0;
    for path in &files {
        let file = path
            .strip_prefix(root)
            .expect("it was found there")
            .to_string_lossy()
            .into_owned();
        layers += usize::from(file.starts_with("src/core/"));
        found.extend(violations(
            &file,
            &fs::read_to_string(path).expect("a source can be read"),
        ));
    }
    assert!(layers > 0, "no source of the core was found: nothing was checked");
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn every_planted_violation_is_found() {
    let planted = [
        ("src/core/x.rs", "fn f() { std::fs::read(p); }"),
        ("src/core/x.rs", "use std::{collections::BTreeMap, thread};"),
        ("src/core/x.rs", "use std::time::{Duration, Instant};"),
        ("src/core/x.rs", "fn f() { let t = Instant::now(); }"),
        ("src/table/x.rs", "fn f(t: SystemTime) {}"),
        ("src/table/x.rs", "use nix::fcntl::open;"),
        ("src/core/x.rs", "use crate::table::Name;"),
        ("src/core/x.rs", "use crate::{core::Leg, runtime::port::{Port}};"),
        ("src/core/deep/x.rs", "use super::super::super::io::disk;"),
        (
            "src/core/mod.rs",
            "mod tests { use super::super::io; fn f() { super::super::io::x() } }",
        ),
        ("src/table/x.rs", "fn f() { crate::io::disk::same(a, b); }"),
        ("src/io/x.rs", "use crate::runtime::port::Port;"),
        ("src/io/x.rs", "use crate::control::Request;"),
        ("src/control/x.rs", "use twinblk::io::disk::Disk;"),
        ("src/runtime/x.rs", "fn f() { unsafe { g() } }"),
        ("src/core/x.rs", "/* a /* nested */ comment */ unsafe fn f() {}"),
        ("tools/src/main.rs", "unsafe impl Send for X {}"),
        ("src/runtime/x.rs", "use libublk::UblkCtrl;"),
    ];
    for (file, text) in planted {
        assert_ne!(violations(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    let allowed = [
        (
            "src/core/x.rs",
            "// std::fs and unsafe, in a comment\nuse super::leg::LegId;",
        ),
        (
            "src/core/x.rs",
            "const S: &str = \"unsafe std::fs::read\"; const R: &str = r#\"crate::io\"#;",
        ),
        ("src/core/x.rs", "fn f<'a>(x: &'a str) -> char { '\"' }"),
        (
            "src/core/x.rs",
            "#![deny(unsafe_op_in_unsafe_fn)] mod io { } use super::x::{self, io};",
        ),
        (
            "src/core/x.rs",
            "mod tests { use super::*; use crate::core::{Geometry, Range}; }",
        ),
        ("src/table/x.rs", "use crate::core::Record; use super::checked::Kind;"),
        (
            "src/io/x.rs",
            "use std::fs; use crate::table::LegKind; fn f() { unsafe { g() } }",
        ),
        (
            "src/runtime/x.rs",
            "use crate::io::disk::Disk; use std::time::Instant; fn f() { Instant::now() }",
        ),
        ("ublk-target/src/main.rs", "unsafe { f() } use libublk::ctrl;"),
    ];
    for (file, text) in allowed {
        assert_eq!(violations(file, text), Vec::<String>::new(), "{text}");
    }
}
