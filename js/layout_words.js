// The editor's words in every language it knows.

export const WORDS = {
  zh: {
    preset: "预设…", add: "添加文字框", duplicate: "复制 (Ctrl+D)", remove: "删除 (Del)", up: "上移一层 (])", down: "下移一层 ([)",
    arrange: "对齐…",
    undo: "撤销 (Ctrl+Z)", redo: "重做 (Ctrl+Shift+Z)", out: "缩小 (-)", fit: "适合页面 (0)", in: "放大 (+)", snap: "吸附",
    role: "角色", align: "对齐", direction: "方向", color: "草图颜色", style: "样式词，例如 红色粗体", font: "草图字体",
    fresh: "新建版面", empty: "在页面上拖动以绘制文字框，然后输入文字", page: "页面",
    hint: "按住 Shift 选择多个文字框；Ctrl+C、Ctrl+V 可复制到其他节点", several: (count) => `已选择 ${count} 个文字框`,
    broken: "此版面无法在这里编辑，已原样保留：",
    options: {
      poster: "海报", menu: "菜单", "book cover": "书封", slide: "幻灯片",
      title: "标题", subtitle: "副标题", body: "正文", caption: "说明", label: "标签", sign: "招牌", price: "价格", text: "文字",
      left: "居左", center: "居中", right: "居右", horizontal: "横排", vertical: "竖排",
      "to left": "左对齐", "to center": "水平居中", "to right": "右对齐", "to top": "上对齐", "to middle": "垂直居中", "to bottom": "下对齐",
      "spread x": "水平等距", "spread y": "垂直等距",
    },
  },
  en: {
    preset: "Preset…", add: "Add a box", duplicate: "Duplicate (Ctrl+D)", remove: "Delete (Del)", up: "Bring forward (])", down: "Send back ([)",
    arrange: "Arrange…",
    undo: "Undo (Ctrl+Z)", redo: "Redo (Ctrl+Shift+Z)", out: "Zoom out (-)", fit: "Fit the page (0)", in: "Zoom in (+)", snap: "Snap",
    role: "Role", align: "Alignment", direction: "Direction", color: "Colour in the sketch", style: "style words, e.g. bold red", font: "sketch font",
    fresh: "Start a new layout", empty: "Drag on the page to draw a box, then type", page: "Page",
    hint: "Shift selects several boxes; Ctrl+C and Ctrl+V also work between nodes", several: (count) => `${count} boxes are selected`,
    broken: "This layout is kept as it is, because it cannot be edited here: ",
    options: {
      "to left": "Align left", "to center": "Centre across", "to right": "Align right",
      "to top": "Align top", "to middle": "Centre down", "to bottom": "Align bottom",
      "spread x": "Equal gaps across", "spread y": "Equal gaps down",
    },
  },
}
