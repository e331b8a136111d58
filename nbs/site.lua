-- What the site needs beside Quarto and nbdev: links to our own pages that stay on this site, code without links in it, long
-- imports folded, and a line under each title that leads to the notebook.

local home = "https://miniai.github.io/miniai/"
local root = "."          -- from this page to the top of the site
local here                -- this page's file, such as "solutions/01_matmul.ipynb"

local function find_page()
  local file = (quarto.doc.input_file or ""):gsub("\\", "/")
  here = file:match("solutions/[^/]+$") or file:match("appendix/[^/]+$") or file:match("[^/]+$") or ""
  here = here:gsub("%.quarto_ipynb.*$", ".ipynb")
  root = here:find("/") and ".." or "."
end

-- nbdev links names by the address of the published site. Private names and these have no heading of their own on their page,
-- and so has no name of backprop.
local bare = {["#gaussian.kl"]=true, ["#change.between"]=true, ["#emoji.rows"]=true, ["#publisheddiffusion.denoiser"]=true, ["#reader.score"]=true, ["#drawer.check"]=true}

local function own(target)
  if target:sub(1, #home) ~= home then return nil end
  local page, anchor = target:sub(#home+1):match("^([^#]*)(#?.*)$")
  if page == "backprop.html" or bare[anchor] or anchor:match("^#_") or anchor:match("%._") then anchor = "" end
  return root.."/"..page..anchor
end

local function link(el)
  local target = own(el.target)
  if target then el.target = target; return el end
end

-- nbdev puts links into signatures and outputs too, where they would be shown as Markdown
local function unlink(text)
  return (text:gsub("%[(`[^`\n]*`)%]%(https?://[^)%s]*%)", "%1"):gsub("%[([%w_.]+)%]%("..home:gsub("%p", "%%%0").."[^)%s]*%)", "%1"))
end

local function only_imports(text)
  for line in text:gmatch("[^\n]+") do
    local code = line:gsub("#.*$", "")
    if code:match("%S") and not code:match("^import ") and not code:match("^from ") and not code:match("^%s+[%w_, ()]+$") then return false end
  end
  return true
end

local function code(el)
  el.text = unlink(el.text)
  if el.classes:includes("cell-code") then
    local _, breaks = el.text:gsub("\n", "\n")
    local folded, said = el.attributes["code-fold"], el.attributes["code-summary"] or "Imports"
    if (folded or breaks >= 5) and only_imports(el.text) then
      el.attributes["code-fold"] = folded or "true"
      if not said:match("[Ii]mports") then said = "Imports" end          -- the summary is the next cell's, to which they belong
      el.attributes["code-summary"] = said
    end
  end
  return el
end

-- The words of an image in the text are its alternative text too, where it has a caption
local function described(el)
  if not el.attributes["fig-alt"] and not el.attributes["alt"] and #el.caption > 0 then
    el.attributes["fig-alt"] = pandoc.utils.stringify(el.caption)
    return el
  end
end

-- Columns as wide as their contents need. Where lines of Markdown are long, Pandoc would make them as wide as their dashes.
local function columns(el)
  for i, spec in ipairs(el.colspecs) do el.colspecs[i] = {spec[1], nil} end
  if #el.colspecs > 8 then return el end
  return el:walk({Inlines = function(line)
    for i = 2, #line-1 do        -- a spread stays with its sign, where that doesn't make the table too wide
      if line[i].t == "Space" and line[i-1].t == "Str" and line[i-1].text == "±" then line[i] = pandoc.Str("\u{a0}") end
    end
    return line
  end})
end

local function buttons(doc)
  if not here:match("%d%d%w?_[^/]*%.ipynb$") and here ~= "solutions/checking.ipynb" then return nil end
  local name = here:match("[^/]+$")
  local parts = {
    '<a href="https://colab.research.google.com/github/miniai/miniai/blob/main/nbs/'..here..'"><i class="bi bi-play-circle"></i> Open in Colab</a>',
    '<a href="'..root..'/notebooks/'..here:gsub("%.ipynb$", ".json")..'" download="'..here:match("[^/]+$")..'"><i class="bi bi-download"></i> Download the notebook</a>'}
  local page = name:gsub("^%d%d%w?_", ""):gsub("%.ipynb$", ".html")
  local lesson = name:match("^%d%d%a_") and "appendix/"..page or page
  if here:match("^solutions/%d%d") then table.insert(parts, '<a href="../'..lesson..'"><i class="bi bi-book"></i> The lesson</a>')
  elseif here:match("^%d%d_") then table.insert(parts, '<a href="solutions/'..page..'"><i class="bi bi-check2-square"></i> Solutions</a>') end
  doc.blocks:insert(1, pandoc.RawBlock("html", '<p class="page-actions">'..table.concat(parts, "\n")..'</p>'))
  return doc
end

return {
  {Pandoc = function(doc) find_page(); return nil end},
  {Link = link, CodeBlock = code, Image = described, Table = columns},
  {Pandoc = buttons},
}
