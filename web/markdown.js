// Markdown to DOM nodes. `marked` finds the structure; the nodes are made here, one by one, from text:
// no HTML of a model's answer is ever parsed, so none can run.

// marked escapes the text of some tokens for those who write HTML; nodes want it plain.
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'" };
const plain = (text) => text.replace(/&(?:amp|lt|gt|quot|#39);/g, (entity) => ENTITIES[entity]);

function element(name, children = [], attributes = {}) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function safeLink(token, children) {
  let url;
  try {
    url = new URL(token.href, location.href);
  } catch {
    return children;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return children;
  return [element("a", children, { href: url.href, target: "_blank", rel: "noopener noreferrer" })];
}

function inline(tokens) {
  return tokens.flatMap((token) => {
    switch (token.type) {
      case "strong": return [element("strong", inline(token.tokens))];
      case "em": return [element("em", inline(token.tokens))];
      case "del": return [element("del", inline(token.tokens))];
      case "codespan": return [element("code", [plain(token.text)])];
      case "br": return [element("br")];
      case "link": return safeLink(token, inline(token.tokens));
      case "image": return [plain(token.text || token.href)];  // pictures would call other servers
      case "html": return [token.raw];
      case "text": return token.tokens ? inline(token.tokens) : [plain(token.text)];
      default: return [plain(token.text ?? token.raw)];
    }
  });
}

function cells(row, name, align) {
  return row.map((cell, i) => element(name, inline(cell.tokens), align[i] ? { style: `text-align:${align[i]}` } : {}));
}

function listItem(item) {
  const box = item.task ? [item.checked ? "☑ " : "☐ "] : [];
  return element("li", [...box, ...blocks(item.tokens, !item.loose)]);
}

function code(token) {
  const language = (token.lang ?? "").trim().split(/\s+/)[0];
  const attributes = language ? { class: `language-${language}` } : {};
  return element("pre", [element("code", [token.text + "\n"], attributes)]);
}

/// Block tokens to nodes; `tight` list items hold their text without paragraphs.
function blocks(tokens, tight = false) {
  return tokens.flatMap((token) => {
    switch (token.type) {
      case "space": return [];
      case "heading": return [element(`h${token.depth}`, inline(token.tokens))];
      case "paragraph": return [element("p", inline(token.tokens))];
      case "text": {
        const children = token.tokens ? inline(token.tokens) : [plain(token.text)];
        return tight ? children : [element("p", children)];
      }
      case "code": return [code(token)];
      case "blockquote": return [element("blockquote", blocks(token.tokens))];
      case "list": return [element(token.ordered ? "ol" : "ul", token.items.map(listItem),
        token.ordered && token.start > 1 ? { start: token.start } : {})];
      case "table": return [element("table", [
        element("thead", [element("tr", cells(token.header, "th", token.align))]),
        element("tbody", token.rows.map((row) => element("tr", cells(row, "td", token.align)))),
      ])];
      case "hr": return [element("hr")];
      default: return [element("p", [token.raw])];  // html and anything else: as written
    }
  });
}

export function markdownNodes(text) {
  return blocks(marked.lexer(text, { gfm: true, breaks: true }));
}
